"""`darwinlm prune --file`: a bound on the GGUF file of a quantisation, and the quantised dense model beside it."""

import json
import shlex
from dataclasses import replace

import pytest
from tests.tiny.checkpoint import SETTINGS, tiny_text
from tests.tiny.command import sets
from tests.tiny.pruned import plain_checkpoint

from darwinlm.formats.gguf.engine import ENGINES
from darwinlm.formats.gguf.file_sizes import predicted_sizes
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.quantisation import LLAMA_CPP, SMALLEST
from darwinlm.runs.finished import read_summary
from darwinlm.steps.file.file_figures import BoundedFileFigures

CHEAP = ("units.mlp_multiple=32", "refit.tokens=0", "search.generations=1", "budget.tolerance=0.02")
SIZES = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}


@pytest.fixture
def given(command, tmp_path):
    """Prune a model of several blocks to a file."""
    model = plain_checkpoint(tmp_path / "model", "llama", **SIZES)
    text = tiny_text(tmp_path / "text.txt")
    return lambda *more: command(
        "prune", model, "--text", text, "--out", tmp_path / "out", *sets((*SETTINGS, *CHEAP)), *more
    )


def sizes_of(folder):
    """Predicted bytes of a model's file by type, the largest first."""
    return predicted_sizes(Checkpoint.open(folder))


def test_the_file_keeps_the_bound_and_the_quantised_dense_model_stands_beside_it(given, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    dense = sizes_of(tmp_path / "model")
    bound = dense["q4_k_m"] - 100_000
    ended = given("--file", bound, "--for", "q8_0").succeeded()
    file = tmp_path / "out" / "model-q8_0.gguf"
    assert 0.97 * bound < file.stat().st_size <= 1.01 * bound
    found = read_summary(tmp_path / "out" / "summary.json").of(BoundedFileFigures)
    fits = next(name for name, size in dense.items() if size <= bound)
    assert (found.saved.bytes, found.dense.quantisation) == (file.stat().st_size, fits)
    assert found.dense.kl < found.saved.kl
    assert f"darwinlm export model --quant {fits}" in ended.out
    assert found.dense.bytes <= bound
    better = {"saved": {**found.saved.as_json(), "kl": 0.0}}
    assert "loses less than quantising alone" in BoundedFileFigures.model_validate(found.as_json() | better).note()
    assert not list((tmp_path / "out" / "stages" / "file").glob("*.gguf"))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["budget"]["kind"] == "file"


def test_without_a_type_the_model_is_pruned_to_the_smallest_one_that_is_worth_it(given, command, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    dense = sizes_of(tmp_path / "model")
    bound = dense["q3_k_m"] - 100_000
    ended = given("--file", bound).succeeded()
    file = tmp_path / "out" / "model-q3_k_m.gguf"
    assert 0.9 * bound < file.stat().st_size <= 1.01 * bound
    found = read_summary(tmp_path / "out" / "summary.json").of(BoundedFileFigures)
    assert (found.saved.bytes, found.saved.quantisation, found.dense) == (file.stat().st_size, SMALLEST, None)
    assert "No type makes the dense model that small" in ended.out
    again = given("--file", bound).succeeded()
    assert "already done" in again.out
    for kind, exceeds in (("q8_0", True), (SMALLEST, False)):
        exported = command("export", tmp_path / "out", "--quant", kind, "--out", tmp_path / f"{kind}.gguf").succeeded()
        assert ("that the run was pruned to; darwinlm show" in exported.out + exported.err) == exceeds


@pytest.mark.parametrize("kind", ["q8_0", "q5_k_m", "q3_k_m"])
def test_where_a_type_is_enough_the_command_for_it_is_named(given, command, tmp_path, monkeypatch, kind):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    bound = sizes_of(tmp_path / "model")[kind] + 1000
    ended = given("--file", bound)
    ended.refused("needs no pruning: the whole model has", f"as {kind}")
    assert not (tmp_path / "out" / "stages" / "text").exists()
    monkeypatch.chdir(tmp_path)
    words = shlex.split(ended.err.partition("Write that file: ")[2].strip())
    assert words[:2] == ["darwinlm", "export"]
    command(*words[1:]).succeeded()
    assert (tmp_path / "model.gguf").stat().st_size <= 1.01 * bound


def test_a_type_that_is_asked_for_may_be_too_large_for_the_whole_model(given, tmp_path):
    """Another one fits, but is not what was asked for."""
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    given("--file", sizes_of(tmp_path / "model")["q4_k_m"] + 1000, "--for", "q8_0", "--until", "text").succeeded()


def test_families_that_need_equal_layers_get_them(command, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    model = plain_checkpoint(tmp_path / "model", "gemma", hidden_size=64, intermediate_size=768)
    text, more = tiny_text(tmp_path / "text.txt"), sets((*SETTINGS, *CHEAP))
    bound = sizes_of(model)[SMALLEST] - 30_000
    ended = command("prune", model, "--text", text, "--out", tmp_path / "out", "--file", bound, *more).succeeded()
    assert "with --file all layers get the same sizes" in ended.out
    assert (tmp_path / "out" / "model-q3_k_m.gguf").stat().st_size <= 1.01 * bound
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["model_type"] == "gemma"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--file", "1kB", "--for", "q8_0"), "less than the smallest model that the units allow"),
        (("--file", "1kB"), "less than the smallest model that the units allow"),
        (("--file", "1MB", "--for", "awq"), "awq is no type of GGUF files: leave --for out, or name one of"),
    ],
)
def test_what_is_impossible_is_refused_before_the_first_stage(given, tmp_path, options, said):
    given(*options).refused("budget.file", said)
    assert not (tmp_path / "out" / "stages" / "text").exists()


@pytest.mark.parametrize("more", [("--for", "q8_0"), ()])
def test_without_the_engine_the_extra_is_named(given, tmp_path, monkeypatch, more):
    monkeypatch.setitem(ENGINES, LLAMA_CPP, replace(ENGINES[LLAMA_CPP], package="no_such_package"))
    given("--file", "300kB", *more).refused("[gguf]")
    assert not (tmp_path / "out" / "stages" / "text").exists()
