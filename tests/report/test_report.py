"""Page and tables of a run: complete, with the right figures, and safe for any name."""

import io
import json
import math
import re

import pytest
import yaml
from rich.console import Console
from tests.tiny.summaries import (
    DROPPED,
    NASTY,
    SUMMARIES,
    Page,
    changed,
    given,
    made,
    measured,
    plain,
    recovered,
    searched,
    told,
    without,
)

from darwinlm.report.card import model_card
from darwinlm.report.comparison import comparison
from darwinlm.report.page import render_page
from darwinlm.runs.finished import read_summary
from darwinlm.runtime import tables
from darwinlm.runtime.errors import ArtifactError
from darwinlm.steps.evaluate.model_figures import copying_passage


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
    for expected in (
        *(cell for row in comparison(summary).rows for cell in row),
        "from an earlier run",
        "6 min 5 s",
        "256 of 1,536",
        "KL 0.920",
        "229 evaluations in 5 min 3 s: all generations done",
        "52 of 60 modules were fitted",
        "The best model with equal layers has 1.300 on that text",
        "levels:",
        "The figures hold for this text only",
        "49.9 %",
        "2 threads",
        "8 of 30 attention sub-layers and 1 of 30 MLP sub-layers are removed as a whole",
        "16,384 tokens (17 documents) of hf:HuggingFaceFW/fineweb-edu",
        "trust_remote_code=True",
    ):
        assert expected in text, expected


def test_a_card_lists_several_licences():
    listed = made({**plain(), "origin": {"license": ["apache-2.0", "mit"]}})
    assert yaml.safe_load(model_card(listed).split("---")[1])["license"] == ["apache-2.0", "mit"]


def test_page_survives_missing_figures():
    summary = plain()
    stitched = summary["models"]["stitched"]
    stitched["continuations"] = []
    stitched["metrics"].update(perplexity=math.exp(700), kl=None, tokens_per_second=None)
    del stitched["metrics"]["decode_tokens_per_second"]
    summary.update(prompts=[], stages=[], allocation=[], recipe={}, text_use={})
    summary["steps"]["text"] = {"source": None, "sequence_length": 64, "purposes": {}}
    text = Page(render_page(made(summary))).text
    assert "1e304" in text
    assert "decode speed" not in text
    assert model_card(made(summary))


def test_names_with_html_are_escaped():
    summary = searched()
    summary["model"] = NASTY
    summary["prompts"][0] = NASTY
    summary["steps"]["text"]["source"] = NASTY
    summary["steps"]["export"]["folder"] = NASTY
    summary["recipe"]["model"] = NASTY
    summary["stages"][0]["name"] = NASTY
    summary["steps"]["search"]["ended"] = NASTY
    for entry in summary["models"].values():
        entry["continuations"][0] = NASTY
    page = Page(render_page(made(summary)))  # refuses scripts that aren't ours
    assert page.text.count(NASTY) > 4


def test_rows_of_the_comparison():
    rows = comparison(made(searched())).rows
    assert len(rows) == 4
    assert rows[0] == ("dense", "134.5 M", "106.2 M", "269 MB", "24.9", "0.000", "254", "13.3")
    assert rows[3][1:] == ("81.3 M", "53.0 M (49.9 %)", "163 MB", "48.4", "0.871", "541 (×2.1)", "24.6 (×1.8)")


def test_a_speed_within_the_noise_has_no_factor():
    tree = searched()
    saved = list(tree["models"].values())[-1]["metrics"]
    saved |= {"tokens_per_second": 230.0, "decode_tokens_per_second": 24.6}  # the dense model has 254 and 13.3
    table = comparison(made(tree))
    assert table.rows[-1][-2:] == ("230", "24.6 (×1.8)")
    assert table.remarks[-1].startswith("A speed without a factor doesn't differ from the dense model's")
    assert not any("factor" in remark for remark in comparison(made(searched())).remarks)


FULL = "searched + refit + recovery"


@pytest.mark.parametrize(
    ("tree", "rows"),
    [
        (searched(), ["uniform", "searched", "searched + refit"]),
        (plain(), ["pruned"]),
        (recovered(), ["uniform", "searched", FULL]),
        (given(), ["before recovery", "pruned + recovery"]),
    ],
)
def test_models_are_named_after_the_steps_that_made_them(tree, rows):
    assert named(tree) == ["dense", *rows]
    if rows[-1] == FULL:
        assert named(told(tree, refit=DROPPED))[-1] == FULL.replace("t +", "t (no gain) +")
        assert named(without(tree, "refit"))[-1] == "searched + recovery"


def named(tree):
    """The names of the models of a run."""
    return [row[0] for row in comparison(made(tree)).rows]


def printed(summary, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(tables.terminal(comparison(summary)))
    return console.file.getvalue()


def test_table_of_the_terminal(summary):
    shown = printed(summary, 200)
    table = comparison(summary)
    headings = [word for heading in table.headings for word in heading.split()]
    for words in (*headings, *(cell for row in table.rows for cell in row)):
        assert words in shown
    narrow = printed(summary, 80)
    assert "…" not in narrow
    for row in table.rows:
        assert all(part in narrow for cell in row[1:] for part in cell.split())


def empty(size: str) -> dict:
    """A summary whose dense model has a size of zero, from which no share can be computed."""
    tree = searched()
    tree["models"]["dense"]["metrics"][size] = 0
    return tree


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "isn't a summary of a run"),
        ({"rows": []}, "isn't a summary of a run"),
        ({**searched(), "format": 1}, r"or another version of darwinlm wrote it \(format: "),
        ({**searched(), "budget": 1}, r"or another version of darwinlm wrote it \(budget: "),
        ({**searched(), "surprise": 1}, r"or another version of darwinlm wrote it \(surprise: "),
        (without(searched(), "export"), r"\(steps: no ExportFigures\)"),
        (told(searched(), refit={"fitted": "most"}), r"\(steps: refit.fitted: "),
        (told(searched(), refit={"surprise": 1}), r"\(steps: refit.surprise: "),
        (told(searched(), nothing={}), r"\(steps: there is no step nothing\)"),
        (changed(searched(), steps=3), r"\(steps: there are no figures of steps\)"),
        (changed(searched(), models={"dense": {"metrics": {}}}), r"\(models.dense.metrics: no whole number for params"),
        (
            changed(searched(), budget={"dense_block_params": 0}),
            r"\(budget.dense_block_params: Input should be greater",
        ),
        (empty("params"), r"\(models: the dense model has no parameters\)"),
        (empty("block_params"), r"\(models: the dense model has no parameters\)"),
        ({**searched(), "models": dict([*searched()["models"].items()][::-1])}, "models: the first model isn't dense"),
    ],
)
def test_another_summary_is_refused_in_one_sentence(tmp_path, content, said):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=said) as error:
        read_summary(path)
    assert "\n" not in str(error.value)


def test_looking_back_is_told_everywhere():
    summary = made(measured(searched()))
    text, card = Page(render_page(summary)).text, model_card(summary)
    for expected in ("copied, 16 words", "40 %", "20 %"):
        assert expected in text
        assert expected in card
    assert "No lists of <words>" in text, "escaped, and said"
    assert "20 %" in copying_passage(summary.models, summary.name).tables[0].rows[-1]


def test_marks_that_reorder_text_do_not_reach_the_page():
    tree = recovered()
    tree["model"] = "owner/\u202egnp.exe"
    tree["models"]["dense"]["continuations"] = ["\u202egnp.exe"]
    html = render_page(made(tree))
    assert "\u202e" not in html
    assert "\ufffdgnp.exe" in html


ABSURD = {
    "a negative width": (("allocation", 0, "width", -4), "allocation.0.width: Input should be greater than or equal"),
    "a width of 1e30": (("allocation", 0, "dense_width", 1e30), "allocation.0.dense_width"),
    "more heads than signs": (("allocation", 0, "heads", 10**30), "allocation.0.heads: Input should be less than"),
    "parameters of 400 digits": (("models", "dense", "metrics", "params", 10**400), "it holds a number of 401 digits"),
    "no bytes": (("models", "dense", "metrics", "bytes", -1), "the dense model has no parameters"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_a_summary_with_absurd_figures_is_refused_in_one_line(name, command, tmp_path):
    (*place, field, value), message = ABSURD[name]
    tree = json.loads(json.dumps(searched(4)))
    part = tree
    for step in place:
        part = part[step]
    part[field] = value
    (tmp_path / "summary.json").write_text(json.dumps(tree), encoding="utf-8")
    command("show", tmp_path).refused(str(tmp_path / "summary.json"), message)


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: tree["allocation"][1].update(dense_heads=0),
        lambda tree: tree["allocation"][1].update(heads=2**31 - 1, width=2**31 - 1),
        lambda tree: tree["models"]["refit"].update(continuations=[]),
        lambda tree: tree["models"]["refit"]["metrics"].update(kl=1e308, perplexity=-1e30, decode_tokens_per_second=0),
        lambda tree: tree["models"]["dense"]["metrics"].update(kl=math.nan, perplexity=math.inf, params=10**30),
        lambda tree: tree["budget"].update(upper=-1e308, used=1e308, dense=0),
    ],
)
def test_other_absurd_figures_are_drawn(change, command, tmp_path):
    tree = json.loads(json.dumps(searched(4)))
    change(tree)
    (tmp_path / "summary.json").write_text(json.dumps(tree), encoding="utf-8")
    shown = command("show", tmp_path).succeeded().out
    assert max(map(len, shown.splitlines())) < 1000
    summary = read_summary(tmp_path / "summary.json")
    assert Page(render_page(summary)).text
    assert model_card(summary)
