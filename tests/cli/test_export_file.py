"""`darwinlm export --file`: each tensor has its own type, and the file its size; or one clear message and no file."""

import json

import pytest
from tests.tiny.checkpoint import tiny_text
from tests.tiny.pruned import plain_checkpoint

from darwinlm.engines import process
from darwinlm.export import gguf as export_to_gguf
from darwinlm.export import run
from darwinlm.export.run import export_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.gguf.read import FileTensors
from darwinlm.gguf.sizes import header_bytes, predicted_sizes
from darwinlm.gguf.tokenizer import copy_tokenizer
from darwinlm.runtime.errors import EngineError


@pytest.fixture
def model(tmp_path):
    return plain_checkpoint(tmp_path / "model", "llama", hidden_size=256, num_attention_heads=8)


@pytest.fixture
def text(tmp_path):
    return tiny_text(tmp_path / "text.txt", 200)


@pytest.fixture
def given(command, model, text, tmp_path):
    """Export to a bound: given("300kB"), and other options instead."""
    file = tmp_path / "m.gguf"
    words = ("--to", "gguf", "--text", text, "--out", file)
    return lambda size, *more: command("export", model, *words, "--file", size, *more)


@pytest.fixture
def never(monkeypatch):
    """Nothing is estimated."""
    monkeypatch.setattr(run, "type_losses", lambda *_, **__: pytest.fail("losses were estimated"))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


BEFORE = ["model", "text.txt"]


def test_the_file_keeps_its_bound_and_says_what_it_loses(given, model, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    checkpoint = Checkpoint.open(model)
    sizes, lost = predicted_sizes(checkpoint, header_bytes(checkpoint)), []
    for name in ("q3_k_m", "q5_k_m"):
        bound = sizes[name]
        ended = given(bound, "--overwrite").succeeded()
        assert 0.98 * bound < (tmp_path / "m.gguf").stat().st_size <= bound
        details = json.loads((tmp_path / "m.gguf.export.json").read_text())["details"]
        lost.append(details["estimated_kl"])
        assert f"chosen for the least loss: estimated KL {lost[-1]:.2g} nats per token" in ended.out
        assert "estimating losses of types on 4,096 tokens" in ended.out
        kinds = [each.tensor_type.name for each in FileTensors(tmp_path / "m.gguf").tensors.values()]
        assert details["tensor_types"] == {kind: kinds.count(kind) for kind in kinds}
        assert sum(kind.endswith("_K") for kind in kinds) > 10
    assert lost[0] > 2 * lost[1] > 0
    assert names(tmp_path) == ["m.gguf", "m.gguf.export.json", *BEFORE]


def test_with_room_for_more_every_matrix_has_the_largest_type(given, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    given("10MB").succeeded()
    types = json.loads((tmp_path / "m.gguf.export.json").read_text())["details"]["tensor_types"]
    assert types.keys() == {"F32", "Q8_0"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--to gguf --file 1MB --text TEXT --quant q8_0", ["--file 1MB: --to gguf takes it, instead of --quant"]),
        ("--to hf --file 1MB --text TEXT", ["--file 1MB: --to gguf takes it, instead of --quant"]),
        ("--to gguf --file 1MB", ["--file 1MB: give text", "--text SOURCE"]),
        ("--to gguf --text TEXT", ["only --file SIZE reads text"]),
        ("--to gguf --file big --text TEXT", ["--file big: ", "must be a number with a unit"]),
        ("--to gguf --file 0 --text TEXT", ["--file 0: ", "greater than 0"]),
        ("--to gguf --file 50kB --text TEXT", ["even the smallest types need", "allow a larger file, or prune"]),
        ("--to gguf --file 1MB --text hf:allenai/sciq@test", ["SciQ"]),
        ("--to gguf --file 1MB --text nowhere.txt", ["nowhere.txt"]),
    ],
)  # fmt: skip
def test_wrong_options(command, never, model, text, tmp_path, arguments, parts):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    words = [str(text) if word == "TEXT" else word for word in arguments.split()]
    command("export", model, "--out", tmp_path / "out", *words).refused(*parts)
    assert names(tmp_path) == BEFORE


def test_a_text_that_is_too_short(given, never, text, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    text.write_text("the river turns slowly")
    given("1MB").refused("less than one sequence of 512: give more text")
    assert names(tmp_path) == BEFORE


def test_rows_that_no_type_fits(command, never, text, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    model = plain_checkpoint(tmp_path / "model", "llama", hidden_size=48)
    words = ("--to", "gguf", "--file", "1MB", "--text", text, "--out", tmp_path / "m.gguf")
    command("export", model, *words).refused("needs rows whose length is a multiple of 32", "has rows of 48")
    assert names(tmp_path) == BEFORE


def test_without_the_engine_the_extra_is_named(given, never, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="the extra gguf")
    monkeypatch.setitem(process.ENGINES, "llama.cpp", ("no_such_package", "llama-cpp"))
    given("1MB").refused("a bound on the file", "llama-cpp")
    assert names(tmp_path) == BEFORE


@pytest.mark.parametrize("place", ["darwinlm.gguf.quantise.quantise_files", "darwinlm.export.gguf.rounded_tensors"])
def test_a_quantiser_that_fails_leaves_nothing(given, tmp_path, monkeypatch, place):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")

    def fail(*_, **__):
        raise EngineError("llama.cpp can't quantise to Q2_K (status 1): it said nothing")

    monkeypatch.setattr(place, fail)
    given("1MB").refused("llama.cpp can't quantise to Q2_K")
    assert names(tmp_path) == BEFORE


def test_a_full_disk(given, tmp_path, monkeypatch):
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_to_gguf, "write_gguf", full)
    given("1MB").refused("the disk is full")
    assert names(tmp_path) == BEFORE


def test_a_file_that_is_too_large_is_written_again(given, tmp_path, monkeypatch):
    """The first estimate of what is beside the tensors may be wrong; a second one can't be."""
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    monkeypatch.setattr(export_to_gguf, "header_bytes", lambda *_: 0)
    bound = 400_000
    given(bound).succeeded()
    assert 0.98 * bound < (tmp_path / "m.gguf").stat().st_size <= bound


def test_a_gguf_file_is_a_model_too(command, text, tmp_path):
    """Its tokenizer is copied, so that none that transformers knows differently is written."""
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")
    whole, small = tmp_path / "whole.gguf", tmp_path / "small.gguf"
    export_model(plain_checkpoint(tmp_path / "model", "llama"), whole, to="gguf", quantisation="f32")
    bound = 150_000
    command("export", whole, "--to", "gguf", "--file", bound, "--text", text, "--out", small).succeeded()
    assert 0.97 * bound < small.stat().st_size <= bound
    assert copy_tokenizer(small, 320) == copy_tokenizer(whole, 320)
    assert json.loads((tmp_path / "small.gguf.export.json").read_text())["details"]["tokenizer_agrees"]
    command("export", whole, "--to", "hf", "--out", tmp_path / "hf").succeeded()
    assert (tmp_path / "hf" / "config.json").is_file()
    command("export", whole, "--to", "gguf", "--out", whole, "--overwrite").refused("which this command reads")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but cut")
    command("export", tmp_path / "bad.gguf", "--to", "hf", "--out", tmp_path / "x").refused("bad.gguf")
    made = ["bad.gguf", "hf", "small.gguf", "small.gguf.export.json", "whole.gguf", "whole.gguf.export.json"]
    assert names(tmp_path) == sorted([*made, *BEFORE])


def test_a_hub_id_that_is_not_there(command, tmp_path):
    command("export", "nobody/nothing", "--to", "hf", "--out", tmp_path / "out").refused("can't find the model")
    assert names(tmp_path) == []
