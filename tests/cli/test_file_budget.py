"""`darwinlm prune --file`: a bound on the GGUF file of a quantisation, and the quantised dense model beside it."""

import json
import shlex

import pytest
from tests.export.conftest import engine_here as engine_here
from tests.tiny.checkpoint import SETTINGS, tiny_text
from tests.tiny.pruned import plain_checkpoint

from darwinlm.engines import process
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.gguf.sizes import FileSizes, file_tensors, header_bytes, predicted_sizes
from darwinlm.recipe.quantisation import UNCHOSEN
from darwinlm.report.summary import read_summary
from darwinlm.report.wording import bounded_file

CHEAP = ("units.mlp_multiple=32", "refit.tokens=0", "search.generations=1", "budget.tolerance=0.02")
OSS = {"num_hidden_layers": 4, "sliding_window": 16, "swiglu_limit": 7.0, "intermediate_size": 128}
SIZES = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}


@pytest.fixture
def given(command, tmp_path):
    """Prune a model of several blocks to a file."""
    model = plain_checkpoint(tmp_path / "model", "llama", **SIZES)
    sets = [part for setting in (*SETTINGS, *CHEAP) for part in ("--set", setting)]
    text = tiny_text(tmp_path / "text.txt")
    return lambda *more: command("prune", model, "--text", text, "--out", tmp_path / "out", *sets, *more)


def test_the_file_keeps_the_bound_and_the_quantised_dense_model_stands_beside_it(given, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    checkpoint = Checkpoint.open(tmp_path / "model")
    dense = predicted_sizes(checkpoint, header_bytes(checkpoint))
    bound = dense["q4_k_m"] - 100_000
    ended = given("--file", bound, "--for", "q8_0").succeeded()
    file = tmp_path / "out" / "model-q8_0.gguf"
    assert 0.97 * bound < file.stat().st_size <= 1.01 * bound
    found = read_summary(tmp_path / "out" / "summary.json").bounded
    fits = next(name for name, size in dense.items() if size <= bound)
    assert (found.saved.bytes, found.dense.quantisation) == (file.stat().st_size, fits)
    assert found.dense.kl < found.saved.kl
    assert f"darwinlm export model --to gguf --quant {fits}" in ended.out
    assert found.dense.bytes <= bound
    better = {"saved": {**found.saved.as_json(), "kl": 0.0}}
    summary = read_summary(tmp_path / "out" / "summary.json")
    said = bounded_file(summary.model_copy(update={"bounded": type(found).model_validate(found.as_json() | better)}))
    assert "loses less than quantising alone" in said
    assert not list((tmp_path / "out" / "stages" / "file").glob("*.gguf"))
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["budget"]["kind"] == "file"


def smallest(folder):
    """Bytes of a model's file with the smallest type for each tensor."""
    checkpoint = Checkpoint.open(folder)
    shapes = {name: tuple(each.shape) for name, each in checkpoint.outline.named_parameters()}
    sizes = FileSizes(checkpoint, UNCHOSEN)
    return header_bytes(checkpoint) + sizes.whole(file_tensors(checkpoint, shapes))


def test_without_a_type_widths_and_types_keep_the_bound_together(given, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    bound = smallest(tmp_path / "model") - 60_000
    ended = given("--file", bound).succeeded()
    file = tmp_path / "out" / "model-mixed.gguf"
    assert 0.97 * bound < file.stat().st_size <= bound
    found = read_summary(tmp_path / "out" / "summary.json").bounded
    assert (found.saved.bytes, found.saved.quantisation, found.dense) == (file.stat().st_size, "mixed", None)
    assert "which types alone can't reach" in ended.out
    assert "No types make the dense model that small" in ended.out
    kinds = json.loads((tmp_path / "out" / "model-mixed.gguf.export.json").read_text())["details"]["tensor_types"]
    assert len(kinds.keys() - {"F32"}) > 1
    again = given("--file", bound).succeeded()
    assert "already done" in again.out


def test_where_types_are_enough_the_command_for_them_is_named(given, command, tmp_path, monkeypatch):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    bound = smallest(tmp_path / "model") + 150_000
    ended = given("--file", bound)
    ended.refused("needs no pruning: with a type for each tensor")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(ended.err.partition("Write that file: ")[2].strip())
    assert words[:2] == ["darwinlm", "export"]
    command(*words[1:]).succeeded()
    assert (tmp_path / "model.gguf").stat().st_size <= bound


def test_families_that_need_equal_layers_get_them(command, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    model = plain_checkpoint(tmp_path / "model", "gemma", hidden_size=64, intermediate_size=256)
    text = tiny_text(tmp_path / "text.txt")
    sets = [part for setting in (*SETTINGS, *CHEAP) for part in ("--set", setting)]
    bound = smallest(model) - 30_000
    ended = command("prune", model, "--text", text, "--out", tmp_path / "out", "--file", bound, *sets).succeeded()
    assert "with --file all layers get the same sizes" in ended.out
    assert (tmp_path / "out" / "model-mixed.gguf").stat().st_size <= bound
    assert json.loads((tmp_path / "out" / "model" / "config.json").read_text())["model_type"] == "gemma"


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("mixtral", {"sliding_window": None}),
        ("gpt_oss", {"num_hidden_layers": 4, "sliding_window": 16, "swiglu_limit": 7.0, "intermediate_size": 128}),
    ],
)
def test_mixtures_get_widths_and_types_together(command, tmp_path, model_type, sizes):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    gguf = pytest.importorskip("gguf", reason="the extra gguf")
    model = plain_checkpoint(tmp_path / "model", model_type, **sizes)
    text = tiny_text(tmp_path / "text.txt")
    sets = [part for setting in (*SETTINGS, *CHEAP) for part in ("--set", setting)]
    bound = smallest(model) - 60_000
    ended = command("prune", model, "--text", text, "--out", tmp_path / "out", "--file", bound, *sets).succeeded()
    assert "which types alone can't reach" in ended.out
    file = tmp_path / "out" / "model-mixed.gguf"
    assert 0.9 * bound < file.stat().st_size <= bound
    experts = [each for each in gguf.GGUFReader(file).tensors if "_exps.weight" in each.name]
    assert {each.tensor_type.name for each in experts} - {"Q8_0"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--file", "1kB", "--for", "q8_0"), "less than the smallest model that the units allow"),
        (("--file", "1kB"), "less than the smallest model that the units allow"),
        (("--file", "1MB", "--set", "database.saliency=output"), "use database.saliency=loss, or name one with --for"),
        (("--file", "1MB", "--for", "awq"), "awq is no type of GGUF files: leave --for out, or name one of"),
    ],
)
def test_what_is_impossible_is_refused_before_the_first_stage(given, tmp_path, options, said):
    given(*options).refused("budget.file", said)
    assert not (tmp_path / "out" / "stages" / "text").exists()


@pytest.mark.parametrize("more", [("--for", "q8_0"), ()])
def test_without_the_engine_the_extra_is_named(given, tmp_path, monkeypatch, more):
    monkeypatch.setitem(process.ENGINES, "llama.cpp", ("no_such_package", "llama-cpp"))
    given("--file", "1MB", *more).refused("llama-cpp")
    assert not (tmp_path / "out" / "stages" / "text").exists()
