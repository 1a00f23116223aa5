"""Page and tables of a run: complete, with the right figures, and safe for any name."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ET
from html import unescape
from itertools import pairwise

import matplotlib as mpl
import pytest
from rich.console import Console
from tests.tiny.summaries import NASTY, SUMMARIES, Page, front_matter, given, made, plain, recovered, searched

from darwinlm.artifact import write_json
from darwinlm.errors import ArtifactError
from darwinlm.report import plots
from darwinlm.report.card import model_card
from darwinlm.report.looking_back import looking_back_table
from darwinlm.report.page import render_page
from darwinlm.report.summary import GenerationFigures, read_summary
from darwinlm.report.table import COLUMNS, TERMINAL_COLUMNS, comparison_rows, comparison_table


@pytest.fixture(params=SUMMARIES)
def summary(request):
    return made(SUMMARIES[request.param]())


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
    summary = made(searched())
    text = Page(render_page(summary)).text
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
        "52 of 60 modules were fitted",
        "The best model with equal layers has 1.300 there",
        "levels:",
        "The figures hold for this text and for no other",
        "49.9 %",
        "2 threads",
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
    text = Page(render_page(made(summary))).text
    assert words in text
    assert "before," not in text.split("Refit")[1].split("Using it")[0]
    summary["refit"] |= {"kl_before": 0.5, "kl_after": 0.4}
    assert "on validation text (KL 0.500 before, 0.400 after)" in Page(render_page(made(summary))).text


def test_page_without_search_and_refit():
    html = render_page(made(plain()))
    text = Page(html).text
    assert "How the sizes were chosen isn't recorded" in text
    assert "Refit" not in text
    assert "Recovery" not in text
    assert "trust_remote_code" not in html
    assert "searched, stitched" not in html


def test_sublayers_that_a_model_never_had_are_not_called_gone():
    summary = plain()
    summary["allocation"][3].update(groups=0, heads=0, dense_groups=0, dense_heads=0)
    text = Page(render_page(made(summary))).text
    assert "never there" in text
    assert "No sub-layer is gone" in text
    assert "gone" not in front_matter(model_card(made(summary)))[1].split("## Sizes")[0]


def test_page_survives_missing_figures():
    summary = plain()
    summary["models"]["stitched"].update(perplexity=math.exp(700), kl=None, tokens_per_second=None, continuations=[])
    del summary["models"]["stitched"]["decode_tokens_per_second"]
    summary.update(prompts=[], stages=[], allocation=[], recipe={}, machine={})
    summary["text"] = {"source": None, "sequence_length": 64, "purposes": {}}
    text = Page(render_page(made(summary))).text
    assert "1e304" in text
    assert "times as fast" not in text
    assert model_card(made(summary))


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
    page = Page(render_page(made(summary)))  # refuses scripts that aren't ours
    assert page.text.count(NASTY) > 5


def test_every_generation_is_told_and_drawn(monkeypatch):
    drawn = []
    draw = plots.search_plot
    monkeypatch.setattr(plots, "search_plot", lambda points, uniform: drawn.append(points) or draw(points, uniform))
    text = render_page(made(searched()))
    assert "an evolutionary search of 19 generations guided by gradients" in text
    assert [point.kl for point in drawn[0]] == [each["kl"] for each in searched()["search"]["history"]]
    text = render_page(made(recovered()))
    assert "1 generation with the paper&#39;s level switch" in text
    assert "guided by gradients" not in text


# What is said of a run must be what it did: each sentence that depends on that, for runs of either kind.
@pytest.mark.parametrize("write", [render_page, model_card])
@pytest.mark.parametrize(
    ("make", "said", "unsaid"),
    [
        (searched, ["wasn't trained after pruning"], ["was trained on", "was then trained", "How its sizes"]),
        (recovered, ["was trained on 24,576 tokens after pruning"], ["wasn't trained", "without its continued"]),
        (given, ["was trained on 24,576 tokens after pruning"], ["evolution", "refitted", "searched", "evaluations"]),
    ],
)
def test_what_is_said_of_the_training_is_true_of_the_run(write, make, said, unsaid):
    text = unescape(write(made(make())))
    for words in said:
        assert words in text, words
    for words in unsaid:
        assert words not in text, words


def test_purposes_of_the_text_are_those_of_the_run():
    def uses(tree):
        return Page(render_page(made(tree))).text

    assert "second moments of the database; the refit" in uses(searched())
    assert "strength of the refit" in uses(searched())
    assert "held-out loss while training" not in uses(searched())
    assert "held-out loss while training" in uses(recovered())
    assert "the refit" not in uses(plain()).split("Text and time")[1].split("The recipe")[0]


def test_later_rounds_are_said_to_compare_with_what_they_cut():
    summary = recovered()
    assert "to the dense model and ended" in Page(render_page(made(summary))).text
    summary["from_pruned"] = True
    assert "to the model that this round cut" in Page(render_page(made(summary))).text
    assert "pruned in several rounds" in model_card(made(summary))


def test_no_folder_of_the_machine_is_on_the_page_or_the_card():
    summary = recovered()
    summary["model"] = "/home/someone/secret/SmolLM2-135M-Instruct.Q4_1.gguf"
    summary["text"].update(source="/home/someone/secret/text.txt", training_source="/home/someone/secret/more.txt")
    summary["recipe"] = {"model": summary["model"], "text": {"source": "/home/someone/secret/text.txt"}}
    for text in (render_page(made(summary)), model_card(made(summary))):
        assert "secret" not in text
        assert "SmolLM2-135M-Instruct with half of its block parameters" in text


@pytest.mark.parametrize("blocks", [1, 30, 80])
def test_plots_are_svg_and_deterministic(blocks):
    summary, trained = made(searched(blocks)), made(recovered())
    history = summary.search.history
    points = [plots.SizePoint("dense", 106.2, 24.9), plots.SizePoint("a < b & $c$", 53.0, 48.4, final=True)]

    def draw():
        return [
            plots.search_plot(history, 1.3),
            plots.size_plot(points),
            plots.recovery_plot(trained.recovery.log),
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
    assert "a &lt; b &amp; $c$: 48.4" in first[1]


def test_plots_leave_no_figures_behind():
    import sys

    plots.size_plot([plots.SizePoint("dense", 106.2, 24.9)])
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.search_plot([GenerationFigures(kl=0.9, improved=False, evaluations=1, seconds=0.0)], 1.0),
        lambda: plots.recovery_plot([]),
        lambda: plots.size_plot([]),
        lambda: plots.size_plot([plots.SizePoint("lost", 1.0, math.inf)]),
        lambda: plots.size_plot([plots.SizePoint("good", 2.0, 10.0), plots.SizePoint("bad", 1.0, math.exp(700))]),
        lambda: plots.size_plot([plots.SizePoint("same", 1.0, 5.0), plots.SizePoint("same again", 1.0, 5.0)]),
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
    rows = comparison_rows(made(searched()))
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
    assert [row.cells[0] for row in comparison_rows(made(plain()))] == ["dense", "pruned, stitched"]


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
    console.print(comparison_table(made(searched())))
    printed = console.file.getvalue()
    assert "…" not in printed
    for figure in ("134.5 M", "106.2 M", "24.9", "0.982", "(×2.1)", "(49.9 %)"):
        assert figure in printed


FULL = "searched + refit + recovery"


@pytest.mark.parametrize(
    ("tree", "rows"),
    [
        (recovered(), ["dense", "uniform, same size", "searched, stitched", "searched + refit", FULL]),
        (given(), ["dense", "before recovery", "pruned + recovery"]),
    ],
)
def test_models_are_named_after_the_steps_that_made_them(tree, rows):
    assert [row.cells[0] for row in comparison_rows(made(tree))] == rows
    if tree["refit"]:
        tree["refit"] |= {"kept": "stitched", "strength": 0.0}
        assert comparison_rows(made(tree))[-1].cells[0] == "searched + refit (no gain) + recovery"
        tree["refit"] = None
        assert comparison_rows(made(tree))[-1].cells[0] == "searched + recovery"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "holds no summary of a run"),
        ({"rows": []}, "holds no summary of a run"),
        (
            {"models": {}, "version": "0.0.9"},
            "was written by darwinlm 0.0.9 in format none, and .* reads format 1",
        ),
        ({**searched(), "format": 2}, "was written by darwinlm 0.1.0 in format 2"),
        ({**searched(), "export": None}, r"isn't what this version reads \(export: "),
        ({**searched(), "surprise": 1}, r"isn't what this version reads \(surprise: "),
    ],
)
def test_another_summary_is_refused_in_one_sentence(tmp_path, content, said):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=said) as error:
        read_summary(path)
    assert "\n" not in str(error.value)


def test_a_summary_is_read_as_it_was_written(tmp_path, summary):
    path = tmp_path / "summary.json"
    write_json(path, summary.as_json())
    assert read_summary(path) == summary


def looked_back(share: float, loss: float, kl: float) -> dict:
    names = ("16 words", "64 tokens of text, 192 apart")
    copying = [{"name": name, "accuracy": share, "loss": loss, "tokens": 240} for name in names]
    return {"kl_seen": kl, "kl_new": 2 * kl, "seen": 0.5, "copying": copying, "remarks": ["no lists of <words>"]}


def test_looking_back_is_told_everywhere():
    summary = searched()
    for number, model in enumerate(summary["models"].values()):
        model["looking_back"] = looked_back(0.6 - 0.1 * number, 1.25 + number, 0.25 * number)
    summary = made(summary)
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
    summary = made(searched())
    assert looking_back_table(summary) is None
    assert "Looking back" not in render_page(summary)
    assert "copied" not in model_card(summary)
