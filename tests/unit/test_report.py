"""What the report says: the right figures, in the same words everywhere, and safe for any name."""

from __future__ import annotations

import ast
import copy
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise

import matplotlib as mpl
import pytest
import yaml
from rich.console import Console

from darwinlm.report import plots, wording
from darwinlm.report.card import model_card
from darwinlm.report.page import render_page
from darwinlm.report.table import COLUMNS, TERMINAL_COLUMNS, comparison_rows, comparison_table

NASTY = '<script>alert("x")</script> & "quotes" `ticks` | pipe'
VOID = {"meta", "br", "hr", "img", "link", "input"}


def model(params, blocks, perplexity, kl, speed, decode, texts):
    return {
        "params": params,
        "block_params": blocks,
        "bytes": 2 * params,
        "perplexity": perplexity,
        "kl": kl,
        "tokens_per_second": speed,
        "decode_tokens_per_second": decode,
        "continuations": texts,
    }


def searched(blocks=30):
    """A run as it usually is: layers that differ, searched and refitted."""
    allocation = [
        {
            "block": block,
            "groups": (0, 1, 2, 3)[block % 4],
            "heads": (0, 3, 6, 9)[block % 4],
            "width": 0 if block == 7 else 32 * ((block * 7) % 48 + 1),
            "dense_groups": 3,
            "dense_heads": 9,
            "dense_width": 1536,
        }
        for block in range(blocks)
    ]
    history = [
        {
            "number": number,
            "kl": 0.92 * 0.97**number,
            "improved": number > 0,
            "evaluations": 1 + 12 * number,
            "seconds": 7.5 * number,
        }
        for number in range(20)
    ]
    choices = [
        {
            "block": block,
            "kind": kind,
            "ridge": None if block % 9 == 0 else 0.3,
            "before": 0.2 + 0.01 * block,
            "after": 0.2 + 0.01 * block if block % 9 == 0 else 0.15 + 0.008 * block,
        }
        for block in range(blocks)
        for kind in ("attention", "mlp")
    ]
    return {
        "version": "0.1.0",
        "model": "HuggingFaceTB/SmolLM2-135M",
        "budget": {
            "keep": 0.5,
            "dense_block_params": 106202880,
            "upper": 53101440,
            "block_params": 53000000,
            "unused": 0.0019,
        },
        "models": {
            "dense": model(134515008, 106202880, 24.91, 0.0, 254.2, 13.3, [" Paris, the capital.", " it is hot."]),
            "uniform": model(81400000, 53090000, 73.04, 1.37, 512.0, 23.1, [" the the the", " the water"]),
            "stitched": model(81312128, 53000000, 55.2, 0.982, 540.9, 24.7, [" a city in\n\nFrance", ""]),
            "refit": model(81312128, 53000000, 48.36, 0.871, 541.3, 24.6, [" Paris <b>now</b>", " it boils."]),
        },
        "prompts": ["The capital of France is", "Water boils when"],
        "allocation": allocation,
        "search": {
            "start": "knapsack",
            "start_kl": 0.92,
            "uniform_kl": 1.3,
            "kl": history[-1]["kl"],
            "evaluations": 229,
            "seconds": 303.4,
            "ended": "all generations done",
            "history": history,
        },
        "refit": {"choices": choices},
        "text": {
            "source": "hf:HuggingFaceFW/fineweb-edu",
            "sequence_length": 512,
            "purposes": {
                "calibration": {"tokens": 65536, "documents": 71},
                "fitness": {"tokens": 8192, "documents": 9},
                "validation": {"tokens": 8192, "documents": 10},
                "evaluation": {"tokens": 16384, "documents": 17},
            },
        },
        "stages": [
            {"name": "database", "seconds": 61.25, "reused": True},
            {"name": "search", "seconds": 303.4, "reused": False},
        ],
        "export": {"folder": "model", "custom_code": True, "dtype": "bfloat16"},
        "machine": {
            "device": "cpu",
            "threads": 2,
            "torch": "2.13.0",
            "transformers": "5.24.0",
            "compute_dtype": "bfloat16",
        },
        "recipe": {"model": "HuggingFaceTB/SmolLM2-135M", "budget": {"keep": 0.5}, "refit": {"ridges": [0.03, 0.3]}},
    }


def plain():
    """A run without search and refit: equal layers, no custom code."""
    summary = searched()
    summary["search"] = summary["refit"] = None
    del summary["models"]["refit"], summary["models"]["uniform"]
    for entry in summary["allocation"]:
        entry.update(groups=2, heads=6, width=704)
    summary["export"]["custom_code"] = False
    return summary


SUMMARIES = {"searched": searched, "plain": plain}


@pytest.fixture(params=SUMMARIES)
def summary(request):
    made = SUMMARIES[request.param]()
    return json.loads(json.dumps(made))


class Page(HTMLParser):
    """Checks that elements are closed in order; collects ids, resources and visible text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.resources, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self._note(tag, dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not set(self.open) & {"style", "svg"}:
            self.words.append(data)

    def _note(self, tag, attrs):
        if attrs.get("id"):
            self.ids.append(attrs["id"])
        links = [attrs[name] for name in ("src", "href", "xlink:href") if attrs.get(name)]
        if tag != "a":
            self.resources += [link for link in links if not link.startswith("#")]
        assert tag not in {"script", "iframe", "link", "object"}

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


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


def test_headline():
    assert wording.headline(searched()) == (
        "53.0 M of 106.2 M block parameters kept (49.9 %), perplexity 24.9 → 48.4 (73.0 for a uniform model of the "
        "same size), prompts read 2.1 times and text written 1.8 times as fast, 163 MB of weights instead of 269 MB."
    )
    assert "uniform" not in wording.headline(plain())


def test_a_uniform_model_that_is_smaller_is_not_said_to_be_of_the_same_size():
    summary = searched()
    summary["models"]["uniform"]["block_params"] = 50_000_000
    assert "(73.0 for a uniform model that keeps 47.1 %)" in wording.headline(summary)
    assert comparison_rows(summary)[1].cells[0] == "uniform, same budget"
    assert "same size" not in render_page(summary)


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (wording.count, 820, "820"),
        (wording.count, 999_999, "1.0 M"),
        (wording.count, 53_101_440, "53.1 M"),
        (wording.count, 1_235_814_400, "1.24 B"),
        (wording.count, None, "–"),
        (wording.megabytes, 52_000, "0.052"),
        (wording.megabytes, 2_471_645_608, "2,472"),
        (wording.perplexity, 4.312, "4.31"),
        (wording.perplexity, 9.999, "10.0"),
        (wording.perplexity, 999.96, "1,000"),
        (wording.perplexity, 2.5e7, "2e7"),
        (wording.perplexity, math.inf, "∞"),
        (wording.perplexity, math.nan, "–"),
        (wording.divergence, 0.87149, "0.871"),
        (wording.divergence, math.inf, "∞"),
        (wording.rate, 1234.5, "1,234"),
        (wording.rate, math.nan, "–"),
        (wording.duration, 0.04, "0.0 s"),
        (wording.duration, 59.97, "1 min 0 s"),
        (wording.duration, 4350, "1 h 12 min"),
        (wording.duration, 3599.9, "1 h 0 min"),
        (wording.short_source, "/home/someone/models/tiny.gguf", "tiny.gguf"),
        (wording.short_source, "C:\\models\\tiny\\", "tiny"),
        (wording.short_source, "hf:owner/name:config", "hf:owner/name:config"),
        (wording.short_source, None, "unnamed"),
        (wording.hub_id, "owner/name", "owner/name"),
        (wording.hub_id, "./models/tiny", None),
        (wording.hub_id, "models/tiny.gguf", None),
    ],
)
def test_figures_for_people(write, value, expected):
    assert write(value) == expected


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        (18, 10, "1.8"),
        (10, 10, "1.0"),
        (9, 10, "0.9"),
        (0.947, 1, "0.9"),
        (1, 30, "0.033"),
        (99.9, 10, "10"),
        (None, 1, ""),
        (1, 0, ""),
    ],
)
def test_factors(value, reference, expected):
    assert wording.factor(value, reference) == expected


def front_matter(card):
    opening, matter, body = card.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(matter), body


def test_card_of_a_searched_model():
    fields, body = front_matter(model_card(searched()))
    assert fields == {
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["darwinlm", "pruning", "structured-pruning", "custom_code"],
        "datasets": ["HuggingFaceFW/fineweb-edu"],
    }
    for expected in (
        "# `HuggingFaceTB/SmolLM2-135M`, made smaller",
        wording.headline(searched()),
        "| **searched + refit** | **81.3 M** |",
        "8 attention and 1 MLP sub-layers of 30 blocks are gone",
        "trust_remote_code=True",
        "2502.07780",
        "16,384 tokens (17 documents) of hf:HuggingFaceFW/fineweb-edu",
        "wasn't recovered by training",
        "ridge regression",
        "229 evaluations",
    ):
        assert expected in body, expected


def test_card_of_a_plain_model():
    fields, body = front_matter(model_card(plain()))
    assert "custom_code" not in fields["tags"]
    assert "trust_remote_code" not in body
    assert "not searched" in body
    assert "ridge" not in body


def test_card_keeps_paths_and_markup_out():
    summary = searched()
    summary["model"] = "/home/someone/secret/we`ird\n.gguf"
    summary["text"]["source"] = "/home/someone/secret/<b>_text_.txt"
    card = model_card(summary)
    fields, body = front_matter(card)
    assert "base_model" not in fields
    assert "datasets" not in fields
    assert "secret" not in card
    assert "`` we`ird .gguf ``" in body
    assert "\\<b\\>\\_text\\_.txt" in body


@pytest.mark.parametrize("prompt", ["plain", "with \"both\" 'quotes'", "back\\slash\nand newline", "naïve 🙂", NASTY])
def test_loading_code_is_python(prompt):
    summary = searched()
    summary["prompts"] = [prompt]
    code = wording.loading_code(summary)
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert prompt in strings


def test_nothing_changes_the_summary(summary):
    before = copy.deepcopy(summary)
    render_page(summary)
    model_card(summary)
    comparison_table(summary)
    assert summary == before
