"""The pictures: what they show is what was measured, and they are drawn in the colours of the page."""

import math
import re
from itertools import pairwise

import pytest
from tests.report.test_report_page import swept
from tests.tiny.process import python
from tests.tiny.summaries import NASTY, Page, changed, made, pictured, plain, recovered, searched, told, without

from darwinlm.report.page import render_page
from darwinlm.report.pictures.blocks import blocks_picture
from darwinlm.report.pictures.colours import DARK, LIGHT
from darwinlm.report.pictures.draw import STYLE, drawn, figure_of, tick
from darwinlm.report.pictures.sizes import compared_picture, sweep_picture
from darwinlm.report.pictures.vector import inline, stand_alone
from darwinlm.runtime.amounts import count, nats, percent
from darwinlm.runtime.charts import Axis, Bars, Chart, Curve, Level, Picture
from darwinlm.steps.recover.recovery_figures import RecoveryFigures
from darwinlm.steps.search.search_figures import SearchFigures

TIPS = re.compile(r"<title>(.*?)</title>", flags=re.S)


def tips_of(picture: Picture) -> list[list[str]]:
    return [TIPS.findall(svg) for _, svg in inline(picture, "here")]


def test_every_block_has_its_bars() -> None:
    summary = made(searched())
    attention, mlp = tips_of(blocks_picture(summary.allocation))
    assert "block 3: 9 of 9 query heads (100.0 %), KV groups 3 of 3" in attention
    assert attention.count("block 3: 9 of 9 query heads (100.0 %), KV groups 3 of 3") == 2, "the whole bar and its part"
    assert attention.count("block 0: 0 of 9 query heads (0.0 %), KV groups 0 of 3") == 1
    assert "block 1: 256 of 1,536 MLP channels (16.7 %)" in mlp
    first, second = figure_of(blocks_picture(summary.allocation)).axes
    whole, part = first.containers
    assert [bar.get_height() for bar in whole] == [9] * 30
    assert [bar.get_height() for bar in part] == [entry.heads for entry in summary.allocation]
    assert [bar.get_height() for bar in second.containers[1]] == [entry.width for entry in summary.allocation]


def test_blocks_of_experts_and_blocks_without_attention() -> None:
    tree = plain()
    for entry in tree["allocation"]:
        entry.update(groups=0, heads=0, dense_groups=0, dense_heads=0, experts=6, dense_experts=8)
    (chart,) = blocks_picture(made(tree).allocation).charts
    assert chart.y.label == "MLP channels of all experts"
    (bars,) = chart.marks
    assert (bars.parts[0], bars.totals[0]) == (6 * 704, 8 * 1536)
    assert bars.tips[0].endswith("experts 6 of 8")
    assert blocks_picture(()) is None


def test_a_search_is_drawn_beside_the_uniform_model() -> None:
    (picture,) = made(pictured()).of(SearchFigures).pictures()
    losses, changes = picture.charts
    curve, level = losses.marks
    assert (curve.xs[-1], curve.ys[0]) == (12, pytest.approx(0.92))
    assert (level.y, level.label) == (1.3, "uniform model 1.300")
    (bars,) = changes.marks
    assert bars.parts[:4] == (30, 14, 9, 0)
    assert bars.tips[9] == "generation 10: 1 module changed"
    bottom, top = drawn([losses], titled=False).axes[0].get_ylim()
    assert bottom < min(curve.ys) < 1.3 < top


def test_a_summary_of_before_has_no_picture_of_its_search() -> None:
    assert made(searched()).of(SearchFigures).pictures() == ()
    once = [{"number": 0, "kl": 0.9, "moved": 0, "evaluations": 3}]
    assert made(told(searched(), search={"history": once})).of(SearchFigures).pictures() == ()


def test_a_training_is_drawn_by_its_tokens() -> None:
    (picture,) = made(pictured()).of(RecoveryFigures).pictures()
    loss, held_out = picture.charts
    assert loss.marks[0].xs == tuple(2048.0 * at for at in range(1, 120))
    assert held_out.title == "KL on held-out text"
    assert held_out.marks[0].tips[0] == "after 0 tokens: KL 0.870"
    (kl,) = made(recovered()).of(RecoveryFigures).pictures()[0].charts
    assert kl.marks[0].ys == (0.87, 0.61)


def test_a_training_without_the_dense_model_shows_perplexity() -> None:
    log = [{"tokens": 0, "eval_perplexity": 9.5}, {"tokens": 2048, "eval_perplexity": 8.5}]
    (picture,) = made(told(recovered(), recover={"log": log})).of(RecoveryFigures).pictures()
    assert [chart.title for chart in picture.charts] == ["Perplexity on held-out text"]
    assert made(told(recovered(), recover={"log": log[:1]})).of(RecoveryFigures).pictures() == ()


def test_models_are_compared_by_size_and_loss() -> None:
    kl, agreement = compared_picture(made(pictured())).charts
    assert kl.title == "KL by size (lower is better)"
    assert agreement.title == "Same next token by size (higher is better)"
    labels = [label for curve in kl.marks for label in curve.labels]
    assert labels == ["dense", "searched", "uniform", "searched + refit + recovery"]
    assert kl.marks[-1].tips == ("searched + refit + recovery: 81.3 M parameters, KL, nats per token 0.610",)


def test_what_is_not_finite_or_not_measured_is_left_out() -> None:
    tree = searched()
    tree["models"]["uniform"]["metrics"]["kl"] = math.inf
    tree["models"]["stitched"]["metrics"]["kl"] = None
    (kl,) = compared_picture(made(tree)).charts
    assert [label for curve in kl.marks for label in curve.labels] == ["dense", "searched + refit"]
    for figures in tree["models"].values():
        figures["metrics"]["kl"] = None
    assert compared_picture(made(tree)) is None
    Page(render_page(made(tree)))


def test_the_curve_of_a_sweep() -> None:
    sizes, html = swept(1.2)
    (chart,) = sweep_picture(sizes).charts
    ours, uniform = chart.marks
    assert ours.labels == ("keep-50", "keep-75", "dense")
    assert (ours.xs, ours.ys) == ((80e6, 110e6, 134515008), (1.2, 0.6, 0.0))
    assert uniform.name == "uniform models"
    assert html.count("<figure>") == 1


def test_labels_of_close_points_do_not_overlap() -> None:
    xs, ys = (80.0,) * 5 + (130.0,), (0.5, 0.501, 0.502, 0.51, 0.9, 0.0)
    names = ("one", "two", "three", "four", "five", "far")
    chart = Chart("t", Axis("x"), Axis("y", zero=True), (Curve("", xs, ys, names, labels=names, joined=False),))
    figure = drawn([chart], titled=False)
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[number + 1 :])
    lows = sorted(box.y0 for box in boxes)
    assert all(low < high for low, high in pairwise(lows))


def test_a_label_does_not_hide_the_point_beside_it() -> None:
    xs, ys, names = (94.7, 101.8, 134.5), (0.655, 0.673, 1.0), ("uniform", "searched", "dense")
    chart = Chart("t", Axis("x"), Axis("y"), (Curve("", xs, ys, names, labels=names, joined=False),))
    figure = drawn([chart], titled=False)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    (label,) = (text.get_window_extent() for text in axes.texts if text.get_text() == "uniform")
    x, y = axes.transData.transform((101.8, 0.673))
    assert label.x0 < x < label.x1, "or the test says nothing"
    assert y > label.y1


@pytest.mark.parametrize(
    ("words", "value", "shown"),
    [(count, 80e6, "80 M"), (count, 1.5e6, "1.5 M"), (nats, 0.5, "0.5"), (nats, 0.0, "0"), (percent, 0.6, "60 %")],
)
def test_ticks_have_no_zeros_at_the_end(words, value, shown) -> None:
    assert tick(words)(value, None) == shown


def test_colours_are_the_pages_variables() -> None:
    html = render_page(made(pictured()))
    drawn_part = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert drawn_part.count("var(--accent") > 60
    rest = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)", "", drawn_part)
    assert re.findall(r"(?:fill|stroke): *#[0-9a-f]+", rest) == []
    assert "DejaVu" not in drawn_part
    assert LIGHT.keys() == DARK.keys()
    for colours in (LIGHT, DARK):
        for name, colour in colours.items():
            assert f"--{name}: {colour};" in html


def test_names_in_pictures_are_escaped_and_are_no_formulas() -> None:
    name = f"{NASTY} $x^2$ \x1b[31m \u202e 中文"
    marks = (Curve(name, (1, 2), (1, 2), (name, name), labels=(name, name)), Level(1.5, name))
    picture = Picture("bad", (Chart(name, Axis(name), Axis(name), marks),))
    ((_, svg),) = inline(picture, "bad")
    assert "<script" not in svg
    assert "&lt;script&gt;" in svg
    assert "$x^2$" in svg
    assert "中文" in svg
    for hidden in ("\x1b", "\u202e"):
        assert hidden not in svg
    Page(render_page(made(changed(pictured(), model=NASTY))))


def test_many_points_have_few_tips() -> None:
    xs = tuple(map(float, range(1000)))
    chart = Chart("t", Axis("x"), Axis("y"), (Curve("", xs, xs, tuple(map(str, range(1000)))),))
    ((_, svg),) = inline(Picture("long", (chart,)), "long")
    told_points = TIPS.findall(svg)
    assert 40 <= len(told_points) <= 60
    assert told_points[:2] == ["0", "17"]
    assert len(svg) < 20_000


def test_bars_of_nothing() -> None:
    chart = Chart("t", Axis("x"), Axis("y"), (Bars((0.0, 1.0), (0.0, 0.0), (0.0, 0.0), ("a", "b")),))
    ((_, svg),) = inline(Picture("none", (chart,)), "none")
    assert TIPS.findall(svg) == []


def test_a_file_of_its_own_has_both_schemes() -> None:
    svg = stand_alone(blocks_picture(made(searched()).allocation))
    assert svg.startswith("<svg")
    assert "prefers-color-scheme: dark" in svg
    assert f"--accent: {DARK['accent']}" in svg
    assert f"var(--pale, {LIGHT['pale']})" in svg


def test_pictures_are_the_same_each_time_and_change_no_setting() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    picture = compared_picture(made(pictured()))
    figure_of(picture)
    assert stand_alone(picture) == stand_alone(picture)
    assert dict(mpl.rcParams) == before
    assert STYLE["svg.fonttype"] == "none"


def test_the_library_is_imported_to_draw_only() -> None:
    code = (
        "import sys, darwinlm.report.page, darwinlm.report.sweep_page, darwinlm.pipeline"
        "\nprint('matplotlib' in sys.modules)"
    )
    assert python("-c", code).stdout == "False\n"


def test_a_run_without_a_search_has_no_pictures_of_one() -> None:
    html = render_page(made(without(plain(), "recover")))
    assert "KL of the best model so far" not in html
    assert "Loss of the training" not in html
    assert "MLP kept in each block" in html


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 1e308, -1e200])
@pytest.mark.parametrize("joined", [True, False])
def test_figures_that_have_no_place_are_left_out(odd: float, joined: bool) -> None:
    """Those of a damaged file: the tips of the other points stay with their points."""
    xs, ys = (1.0, 2.0, odd, 4.0), (1.0, odd, 3.0, 4.0)
    curve = Curve(
        "",
        xs,
        ys,
        ("one", "two", "three", "four"),
        labels=("1", "2", "3", "4"),
        joined=joined,
        errors=(-1.0, odd, 0.1, odd),
    )
    nothing = Curve("all of it", (odd,), (odd,), ("nowhere",))
    picture = Picture("odd", (Chart("odd", Axis("x"), Axis("y"), (curve, nothing, Level(odd, "bound"))),))
    assert tips_of(picture) == [["one", "four"]]
    (line,) = figure_of(picture).axes[0].collections[-2:-1]
    assert line.get_offsets().tolist() == [[1, 1], [4, 4]]


@pytest.mark.parametrize("odd", [math.nan, 1e308, -1])
def test_a_page_of_a_training_with_absurd_figures_is_drawn(odd: float) -> None:
    tree = pictured(4)
    tree["steps"]["recover"]["log"][0].update(loss=odd)
    tree["steps"]["search"]["history"][1].update(kl=odd)
    assert Page(render_page(made(tree))).text
