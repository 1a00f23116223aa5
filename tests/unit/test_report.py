"""What the page and its tables say: everything that was made, the right figures, and safe for any name."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import matplotlib as mpl
import pytest
from rich.console import Console
from tests.tiny.summaries import NASTY, SUMMARIES, Page, front_matter, plain, searched

from darwinlm.report import plots, wording
from darwinlm.report.card import model_card
from darwinlm.report.looking_back import looking_back_table
from darwinlm.report.page import _with_descent, render_page
from darwinlm.report.table import COLUMNS, TERMINAL_COLUMNS, comparison_rows, comparison_table


@pytest.fixture(params=SUMMARIES)
def summary(request):
    made = SUMMARIES[request.param]()
    return json.loads(json.dumps(made))


def test_page_is_whole_and_loads_nothing(summary):
    html = render_page(summary)
    page = Page(html)
    assert page.resources == []
    assert len(page.ids) == len(set(page.ids)), "an id is there twice"
    assert "url(http" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert re.findall(r"url\(#([^)]*)\)", html) == [i for i in re.findall(r"url\(#([^)]*)\)", html) if i in page.ids]


def test_page_tells_everything_that_was_made():
    summary = searched()
    text = Page(render_page(summary)).text
    assert wording.headline(summary) in text
    for row in comparison_rows(summary):
        for cell in row.cells:
            assert cell in text
    for expected in (
        "hf:HuggingFaceFW/fineweb-edu",
        "65,536",
        "from an earlier run",
        "6 min 5 s",
        "256 of 1,536",
        "KL 0.920",
        "229 evaluations in 5 min 3 s: all generations done",
        "52 of 60 output projections",
        "a uniform model has KL 1.300",
        "ridges:",
        "2 threads",
        "(nothing)",
        "8 of 30 attention sub-layers and 1 of 30 MLP sub-layers are gone",
        "16,384 tokens (17 documents) of hf:HuggingFaceFW/fineweb-edu",
        "trust_remote_code=True",
    ):
        assert expected in text, expected


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"kept": "refit", "strength": 0.75}, "The model took 75% of the way to these weights"),
        ({"kept": "stitched", "strength": 0.0}, "no better for it on validation text, so the stitched weights stay"),
    ],
)
def test_page_says_how_far_the_refit_was_taken(record, words):
    summary = searched()
    summary["refit"] |= record
    assert words in Page(render_page(summary)).text


def test_page_without_search_and_refit():
    html = render_page(plain())
    text = Page(html).text
    assert "not searched" in text
    assert "refit was off" in text
    assert "trust_remote_code" not in html
    assert "searched, stitched" not in html
    assert html.count("<svg") == 2


def test_sublayers_that_a_model_never_had_are_not_called_gone():
    summary = plain()
    summary["allocation"][3].update(groups=0, heads=0, dense_groups=0, dense_heads=0)
    text = Page(render_page(summary)).text
    assert "never there" in text
    assert "No sub-layer is gone" in text
    assert "gone" not in front_matter(model_card(summary))[1].split("## Sizes")[0]


def test_page_survives_missing_figures():
    summary = plain()
    summary["models"]["stitched"].update(
        perplexity=math.exp(700), kl=math.nan, tokens_per_second=None, continuations=[]
    )
    del summary["models"]["stitched"]["decode_tokens_per_second"]
    summary.update(prompts=[], stages=[], allocation=[], recipe={}, machine={})
    summary["text"] = {"source": None, "sequence_length": 64, "purposes": {}}
    text = Page(render_page(summary)).text
    assert "1e304" in text
    assert "times as fast" not in text
    assert model_card(summary)


def test_names_with_html_are_escaped():
    summary = searched()
    summary["model"] = NASTY
    summary["prompts"][0] = NASTY
    summary["text"]["source"] = NASTY
    summary["export"]["folder"] = NASTY
    summary["recipe"]["model"] = NASTY
    summary["stages"][0]["name"] = NASTY
    summary["search"]["ended"] = NASTY
    for entry in summary["models"].values():
        entry["continuations"][0] = NASTY
    page = Page(render_page(summary))  # refuses script elements
    assert page.text.count(NASTY) > 10


@pytest.mark.parametrize(("moves", "words"), [((12, 0, 3), "3 steps downhill and "), ((0,), "1 step downhill and ")])
def test_the_way_down_is_told_and_drawn(moves, words):
    summary = searched()
    search = summary["search"]
    search["descent"] = [
        {
            "moved": moved,
            "change": -0.1 if moved else 0.0,
            "predicted": 0.0,
            "evaluations": 90 + 4 * at,
            "seconds": at + 1.0,
        }
        for at, moved in enumerate(moves)
    ]
    search["history"][0] |= {"kl": 0.8, "seconds": 60.0, "evaluations": 110}
    text = render_page(summary)
    assert f"{words}229 evaluations" in text
    assert "at KL 0.92" in text
    first, second = _with_descent(search)[:2]
    assert first == {"kl": 0.92, "improved": False, "seconds": 60.0 - len(moves), "evaluations": 90}
    assert second == {**search["history"][0], "improved": any(moves)}
    assert _with_descent(search)[2:] == search["history"][1:]


@pytest.mark.parametrize("blocks", [1, 30, 80])
def test_plots_are_svg_and_deterministic(blocks):
    summary = searched(blocks)
    points = [plots.SizePoint("dense", 106.2, 24.9), plots.SizePoint("a < b & $c$", 53.0, 48.4, final=True)]

    def draw():
        return [
            plots.allocation_plot(summary["allocation"]),
            plots.search_plot(summary["search"]["history"]),
            plots.size_plot(points),
            plots.refit_plot(summary["refit"]["choices"]),
        ]

    before = dict(mpl.rcParams)
    first = draw()
    assert dict(mpl.rcParams) == before
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert draw() == first
    for svg in first:
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg")
        assert root.get("viewBox")
        assert "<text" in svg
        assert "<dc:date" not in svg
        assert "<metadata" not in svg
        assert "var(--plot-ink, #1d2129)" in svg
    assert "a &lt; b &amp; $c$: 48.4" in first[2]


def test_plots_leave_no_figures_behind():
    import sys

    plots.size_plot([plots.SizePoint("dense", 106.2, 24.9)])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.allocation_plot([]),
        lambda: plots.allocation_plot(
            [{"block": 0, "heads": 0, "width": 0, "dense_heads": 0, "dense_width": 64}],
        ),
        lambda: plots.search_plot([{"kl": 0.9, "improved": False, "evaluations": 1, "seconds": 0.0}]),
        lambda: plots.size_plot([]),
        lambda: plots.size_plot([plots.SizePoint("lost", 1.0, math.inf)]),
        lambda: plots.size_plot([plots.SizePoint("good", 2.0, 10.0), plots.SizePoint("bad", 1.0, math.exp(700))]),
        lambda: plots.size_plot([plots.SizePoint("same", 1.0, 5.0), plots.SizePoint("same again", 1.0, 5.0)]),
        lambda: plots.refit_plot([]),
        lambda: plots.refit_plot([{"block": 3, "kind": "mlp", "ridge": 0.3, "before": 9.0, "after": 0.01}]),
        lambda: plots.refit_plot([{"block": 3, "kind": "mlp", "ridge": None, "before": 0.0, "after": 0.0}]),
    ],
)
def test_plots_of_odd_data(draw):
    ET.fromstring(draw())


def test_labels_of_points_of_one_size_do_not_overlap():
    svg = plots.size_plot([plots.SizePoint(f"m{number}", 50.0, 20.0 + 0.01 * number) for number in range(4)])
    heights = sorted(float(text.get("y")) for text in ET.fromstring(svg).iter() if (text.text or "").startswith("m"))
    assert len(heights) == 4
    assert all(later - earlier > 10 for earlier, later in pairwise(heights))


def test_rows_of_the_comparison():
    rows = comparison_rows(searched())
    assert [row.cells[0] for row in rows] == ["dense", "uniform, same size", "searched, stitched", "searched + refit"]
    assert [row.final for row in rows] == [False, False, False, True]
    assert rows[0].cells == ("dense", "134.5 M", "106.2 M", "269", "24.9", "0.000", "254", "13.3")
    assert rows[3].cells == (
        "searched + refit",
        "81.3 M",
        "53.0 M (49.9 %)",
        "163",
        "48.4",
        "0.871",
        "541 (×2.1)",
        "24.6 (×1.8)",
    )
    assert [row.cells[0] for row in comparison_rows(plain())] == ["dense", "stitched"]


def test_table_of_the_terminal(summary):
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison_table(summary))
    printed = console.file.getvalue()
    assert len(TERMINAL_COLUMNS) == len(COLUMNS)
    for column in TERMINAL_COLUMNS:
        assert column in printed
    for row in comparison_rows(summary):
        for cell in row.cells:
            assert cell in printed


def test_table_of_a_narrow_terminal_keeps_every_figure():
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table(searched()))
    printed = console.file.getvalue()
    assert "…" not in printed
    for figure in ("134.5 M", "106.2 M", "24.9", "0.982", "(×2.1)", "(49.9 %)"):
        assert figure in printed


def test_nothing_changes_the_summary(summary):
    before = copy.deepcopy(summary)
    render_page(summary)
    model_card(summary)
    comparison_table(summary)
    assert summary == before


def looked_back(share: float, loss: float, kl: float) -> dict:
    names = ("16 words", "64 tokens of text, 192 apart")
    copying = [{"name": name, "accuracy": share, "loss": loss, "tokens": 240} for name in names]
    return {"kl_seen": kl, "kl_new": 2 * kl, "seen": 0.5, "copying": copying, "remarks": ["no lists of <words>"]}


def test_looking_back_is_told_everywhere():
    summary = searched()
    for number, model in enumerate(summary["models"].values()):
        model["looking_back"] = looked_back(0.6 - 0.1 * number, 1.25 + number, 0.25 * number)
    text, card = Page(render_page(summary)).text, model_card(summary)
    for expected in ("copied, 64 tokens of text, 192 apart", "50 % (2.25)", "30 % (4.25)", "0.750", "1.500"):
        assert expected in text
        assert expected in card
    assert "no lists of <words>" in text, "escaped, and said"
    out = io.StringIO()
    Console(file=out, width=160).print(looking_back_table(summary))
    assert "30 %" in out.getvalue()
    assert "(4.25)" not in out.getvalue()


def test_runs_that_measured_no_looking_back_say_nothing_of_it():
    summary = searched()
    assert looking_back_table(summary) is None
    assert "Looking back" not in render_page(summary)
    assert "copied" not in model_card(summary)
