"""Budgets, presets and sweeps on the command line: one message for each mistake, and the files of a sweep."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import Ended
from transformers import AutoModelForCausalLM

import darwinlm
from darwinlm import pipeline
from darwinlm.console import Reporter
from darwinlm.errors import RecipeError
from darwinlm.runs import prune as pruning


@pytest.fixture
def prune(command, tiny_llama, tiny_text_file, tmp_path):
    """Prune with tiny settings into tmp_path/out."""

    def run(*more: object) -> Ended:
        settings = [part for assignment in SETTINGS for part in ("--set", assignment)]
        return command("prune", tiny_llama, "--out", tmp_path / "out", "--text", tiny_text_file, *settings, *more)

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keep", "50%", "--params", "1M"), "budget: give one bound only, not keep and params at once"),
        (("--speedup", "2x", "--latency", "1s"), "not speedup and latency at once"),
        (("--params", "2.7Q"), "budget.params: has an unknown unit 'Q'"),
        (("--bytes", "4 gigs"), "budget.bytes: has an unknown unit 'gigs'"),
        (("--latency", "30"), "budget.latency: needs a unit"),
        (("--speedup", "0.5"), "budget.speedup: must be at least 1"),
        (("--params", "10T"), "more than the whole model: there is nothing to prune; the smallest is"),
        (("--params", "1k"), "less than the smallest model that the units allow"),
        (("--bytes", "1kB"), "budget.bytes: 1000 bytes requested, less than the smallest model"),
        (("--time", "3d"), "time: has an unknown unit 'd'"),
        (("--preset", "papers"), "preset: Input should be 'default' or 'paper'"),
        (("--keep", "75%,75%"), "budget.keep: duplicate value"),
        (("--keep", "75%,high"), "budget.keep"),
        (("--set", "search.generations=0"), "search.generations"),
        (("--set", "budget.tolerance=30%"), "budget.tolerance"),
        (
            ("--set", "search.stages=[{tokens: 64, survivors: 1, training_tokens: 900000}]"),
            "search.stages",
        ),
    ],
)
def test_one_message_for_what_is_wrong(prune, tmp_path, options, said):
    prune(*options).refused(said)
    assert not (tmp_path / "out" / "model").exists()


def test_a_family_from_the_command_line(prune, tmp_path):
    ended = prune("--keep", "80%,50%")
    assert ended.code == 0, ended
    assert "size against loss" in ended.out
    assert (tmp_path / "out" / "index.html").is_file()
    assert str(tmp_path / "out" / "index.html") in ended.out
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["dense", "keep-80", "keep-50"]
    for name in ("keep-80", "keep-50"):
        assert (tmp_path / "out" / name / "model" / "config.json").is_file()
        assert (tmp_path / "out" / name / "report.html").is_file()


# ------------------------------------------------------------------------------------------------ the Python function


@pytest.fixture
def python(tiny_llama, tiny_text_file, tmp_path):
    """`darwinlm.prune` with the settings of the fixture `prune`, into tmp_path/out."""

    def run(**given: object) -> darwinlm.Result:
        common = {"text": str(tiny_text_file), "assignments": SETTINGS, "reporter": Reporter(quiet=True)}
        return darwinlm.prune(str(tiny_llama), tmp_path / "out", **common, **given)

    return run


def recording(seen):
    """Replace the stages, and record the recipe."""
    return lambda run, until, **_: seen.append(run.recipe) or SimpleNamespace(report=None)


@pytest.mark.parametrize(
    ("name", "as_text", "as_number", "field"),
    [
        ("keep", "40%", 0.4, ("budget", "keep")),
        ("params", "1.5M", 1_500_000, ("budget", "params")),
        ("bytes", "2MiB", 2 * 1024**2, ("budget", "bytes")),
        ("speedup", "1.5x", 1.5, ("budget", "speedup")),
        ("latency", "30ms", None, ("budget", "latency")),
        ("time", "90s", 1.5, ("", "time")),
    ],
)
def test_the_function_asks_for_what_the_command_asks_for(prune, python, monkeypatch, name, as_text, as_number, field):
    seen = []
    for module in (pipeline, pruning):
        monkeypatch.setattr(module, "run_stages", recording(seen))
    assert prune(f"--{name}", as_text, "--until", "plan").code == 0
    python(**{name: as_text})
    if as_number is not None:
        python(**{name: as_number})
    section, setting = field
    assert len(seen) >= 2
    for recipe in seen:
        assert recipe == seen[0]
        assert getattr(getattr(recipe, section) if section else recipe, setting) == (as_number or 0.03)
        assert recipe.budget.kind == (name if section == "budget" else "keep")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": 0.5, "params": "1M"}, "give one bound only, not keep and params at once"),
        ({"speedup": 2, "latency": "1s"}, "give one bound only, not speedup and latency at once"),
        ({"latency": 30}, "budget.latency: needs a unit"),
        ({"bytes": 0}, "budget.bytes: must be above 0"),
        ({"time": "3d"}, "time: has an unknown unit 'd'"),
    ],
)
def test_the_function_refuses_what_the_command_refuses(python, tmp_path, given, said):
    with pytest.raises(RecipeError, match=said):
        python(**given)
    assert not (tmp_path / "out").exists()


def test_a_budget_of_the_function_displaces_the_recipes(monkeypatch, python):
    seen = []
    for module in (pipeline, pruning):
        monkeypatch.setattr(module, "run_stages", recording(seen))
    for recipe in ("llama2-7b-2.7b", darwinlm.load_recipe("llama2-7b-2.7b")):
        python(recipe=recipe)
        python(recipe=recipe, speedup="2x")
    assert [recipe.budget.kind for recipe in seen] == ["params", "speedup"] * 2
    assert [recipe.budget.params for recipe in seen] == [2_700_000_000, None] * 2


def test_the_function_keeps_a_bound_on_parameters(python, tiny_llama, tmp_path):
    target = int(0.75 * AutoModelForCausalLM.from_pretrained(tiny_llama).num_parameters())
    result = python(params=target)
    saved = AutoModelForCausalLM.from_pretrained(result.model).num_parameters()
    assert 0.95 * target <= saved <= target
    assert result.summary.budget.kind == "params"
