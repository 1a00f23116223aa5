"""Score against size on the page: the words of both cases, the table, and the picture."""

import pytest
from tests.tiny.summaries import Page, card_of, made, searched

from darwinlm.report.comparison import passages
from darwinlm.report.curve_figures import CurveFigures
from darwinlm.report.page import render_page
from darwinlm.report.pictures.draw import figure_of


def point(kind, keep, value, *, holds=None, dense=0.9):
    score = {"value": value, "stderr": 0.02}
    if kind != "dense":
        difference = value - dense
        score |= {"difference": (difference, difference - 0.03, difference + 0.03), "kept": value / dense}
    return {"kind": kind, "keep": keep, "params": int(keep * 1e8), "scores": {"sciq": score}, "holds": holds}


def curve(*, within="2%", holds=True, **more):
    points = [
        point("dense", 1.0, 0.9, holds=True),
        point("tried", 0.8, 0.89, holds=True),
        point("tried", 0.6, 0.8, holds=False),
        point("equal layers", 0.8, 0.7, holds=False),
        point("chosen", 0.8, 0.885, holds=holds),
    ]
    bound = {"sciq": 0.882} if within else None
    return {"within": within, "items": {"sciq": 200}, "bound": bound, "points": points, **more}


def shown(tree):
    return made({**searched(), "curve": tree})


def test_the_page_answers_which_size_is_safe():
    summary = shown(curve(ended="Sizes are alike.", remarks=["Too few."]))
    text = Page(render_page(summary)).text
    assert "Which size is safe?" in text
    assert "80 % of the block parameters is the smallest that was found within 2% of the dense model's score" in text
    assert "On sciq, it keeps 98.3 % of the dense model's score, a difference of -1.5 points" in text
    assert "95 % interval -4.5 to +1.5" in text
    assert "outside of that bound" not in text
    assert "Sizes are alike. Too few." in text
    assert "Which size is safe?" in card_of({**searched(), "curve": curve()})
    (table,) = passages(summary)[0].tables
    assert table.headings == ("model", "kept, %", "sciq, % (200 items)", "within the bound")
    assert [row[-1] for row in table.rows] == ["yes", "yes", "no", "no", "yes"]
    assert table.rows[2] == ("tried at 60 %", "60", "80.0 ± 2.0", "no")


def test_a_saved_model_outside_of_the_bound_is_said_to_be():
    assert "a little outside of that bound" in Page(render_page(shown(curve(holds=False)))).text


def test_a_given_size_has_no_bound():
    summary = shown(curve(within="", holds=None))
    text = Page(render_page(summary)).text
    assert "Score against size" in text
    assert "within" not in passages(summary)[0].text
    assert "within the bound" not in passages(summary)[0].tables[0].headings


def test_the_kl_is_in_nats():
    tree = curve(within="0.1 nats", nats=True)
    text = Page(render_page(shown(tree))).text
    assert "found within 0.1 nats." in text
    assert "Its KL to the dense model is 0.8850 nats per token" in text


def test_the_picture_has_sizes_errors_equal_layers_and_the_bound():
    figures = CurveFigures.model_validate(curve())
    (chart,) = figures.picture().charts
    sizes, equal, bound = chart.marks
    assert sizes.xs == (60.0, 80.0, 80.0, 100.0)
    assert sizes.ys == pytest.approx((80.0, 89.0, 88.5, 90.0))
    assert sizes.errors == (2.0,) * 4
    assert (equal.name, equal.xs) == ("equal layers", (80.0,))
    assert bound.y == pytest.approx(88.2)
    (axes,) = figure_of(figures.picture()).axes
    assert len(axes.collections) >= 4, "points and error bars of both"
    assert render_page(shown(curve())).count("<figure>") == render_page(made(searched())).count("<figure>") + 1


def test_the_series_of_a_curve():
    figures = CurveFigures.model_validate(curve())
    assert figures.series("sciq")["tried"] == [(0.8, 0.89, 0.02), (0.6, 0.8, 0.02)]
    assert figures.chosen.keep == 0.8
