"""Budgets, presets and sweeps on the command line: one message for each mistake, and the files of a sweep."""

import pytest
from tests.tiny.checkpoint import SETTINGS

import darwinlm
from darwinlm.runtime.console import Reporter


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--keep 100%", "block parameters is the whole model: there is nothing to prune; the smallest is"),
        ("--speedup 1x", "is the whole model: there is nothing to prune; the smallest is"),
        ("--params 10T", "more than the whole model: there is nothing to prune; the smallest is"),
        ("--bytes 1kB", "budget.bytes: 1 kB requested, less than the smallest model"),
        ("--time 3d", "time: has an unknown unit 'd'"),
        ("--set search.rounds=[{tokens:64,survivors:1,training_tokens:900000}]", "search.rounds"),
    ],
)
def test_one_message_for_what_is_wrong(prune, tmp_path, monkeypatch, options, said):
    monkeypatch.setattr("darwinlm.steps.latency.step.POINTS", 2)
    monkeypatch.setattr("darwinlm.steps.latency.step.RUNS", 1)
    prune(*options.split()).refused(said)
    assert not (tmp_path / "out" / "model").exists()


def test_a_family_from_the_command_line(prune, command, tmp_path):
    ended = prune("--keep", "80%,50%").succeeded()
    assert "size against loss" in ended.out
    assert str(tmp_path / "out" / "index.html") in ended.out
    assert f"darwinlm show {tmp_path / 'out' / 'keep-80'} " in ended.out
    assert all(name in ended.out for name in ("dense", "keep-80", "keep-50"))
    assert "keep-50: model/tokenizer.json: as recorded" in command("show", "--verify", tmp_path / "out").succeeded().out
    (tmp_path / "out" / "keep-50" / "model" / "tokenizer.json").unlink()
    command("show", "--verify", tmp_path / "out").refused("the first is keep-50: model/tokenizer.json: it is missing")


@pytest.fixture
def python(tiny_llama, tiny_text_file, tmp_path):
    """`darwinlm.prune` with the settings of the fixture `prune`, into tmp_path/out."""

    def run(**given: object) -> darwinlm.Result:
        common = {"text": str(tiny_text_file), "assignments": SETTINGS, "reporter": Reporter(quiet=True)}
        return darwinlm.prune(str(tiny_llama), tmp_path / "out", **common, **given)

    return run


@pytest.fixture
def recipes(monkeypatch):
    """Recipes of runs from now on, whose stages aren't run."""
    seen = []
    monkeypatch.setattr("darwinlm.pipeline.prune", lambda run: seen.append(run.recipe))
    return seen


@pytest.mark.parametrize(
    ("name", "as_text", "as_number"),
    [
        ("keep", "40%", 0.4),
        ("params", "1.5M", 1_500_000),
        ("bytes", "2MiB", 2 * 1024**2),
        ("speedup", "1.5x", 1.5),
        ("latency", "30ms", None),
        ("time", "90s", 1.5),
    ],
)
def test_the_function_asks_for_what_the_command_asks_for(prune, python, recipes, name, as_text, as_number):
    assert prune(f"--{name}", as_text, "--until", "text").code == 0
    python(**{name: as_text})
    if as_number is not None:
        python(**{name: as_number})
    assert len(recipes) >= 2
    for recipe in recipes:
        assert recipe == recipes[0]
        assert (recipe.time if name == "time" else recipe.budget.bound.value) == (as_number or 0.03)
        assert recipe.budget.kind == ("keep" if name == "time" else name)
