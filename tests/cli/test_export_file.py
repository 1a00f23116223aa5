"""`darwinlm export --file`: the largest type whose file fits, or one clear message and no file."""

import json

import pytest
from tests.tiny.pruned import plain_checkpoint

from darwinlm.engines import process
from darwinlm.export.run import export_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.gguf.sizes import header_bytes, predicted_sizes
from darwinlm.gguf.tokenizer import copy_tokenizer


@pytest.fixture
def model(tmp_path):
    return plain_checkpoint(tmp_path / "model", "llama", hidden_size=256, num_attention_heads=8)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m", "q2_k"])
def test_the_largest_type_that_fits(command, model, tmp_path, kind):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    checkpoint, file = Checkpoint.open(model), tmp_path / "m.gguf"
    bound = predicted_sizes(checkpoint, header_bytes(checkpoint))[kind] + 1000
    command("export", model, "--to", "gguf", "--file", bound, "--out", file).succeeded()
    assert 0.98 * bound < file.stat().st_size <= 1.01 * bound
    assert json.loads((tmp_path / "m.gguf.export.json").read_text())["details"]["quantisation"] == kind


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--to gguf --file 1MB --quant q8_0", ["--file 1MB: --to gguf takes it, instead of --quant"]),
        ("--to hf --file 1MB", ["--file 1MB: --to gguf takes it, instead of --quant"]),
        ("--to gguf --file big", ["--file big: ", "must be a number with a unit"]),
        ("--to gguf --file 0", ["--file 0: ", "greater than 0"]),
        ("--to gguf --file 50kB", ["--file 50kB: no type makes a file that small", "darwinlm prune takes --file"]),
    ],
)  # fmt: skip
def test_wrong_options(command, model, tmp_path, arguments, parts):
    pytest.importorskip("gguf", reason="the extra gguf")
    command("export", model, "--out", tmp_path / "out", *arguments.split()).refused(*parts)
    assert names(tmp_path) == ["model"]


def test_without_the_engine_the_extra_is_named(command, model, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="the extra gguf")
    monkeypatch.setitem(process.ENGINES, "llama.cpp", ("llama_cpp", "no_such_package", "gguf"))
    words = ("--to", "gguf", "--file", "800kB", "--out", tmp_path / "m.gguf")
    command("export", model, *words).refused("quantising to", "[gguf]")
    assert names(tmp_path) == ["model"]


def test_a_gguf_file_is_a_model_too(command, tmp_path):
    """Its tokenizer is copied, so that none that transformers knows differently is written."""
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    whole, small = tmp_path / "whole.gguf", tmp_path / "small.gguf"
    export_model(plain_checkpoint(tmp_path / "model", "llama"), whole, to="gguf", quantisation="f32")
    command("export", whole, "--to", "gguf", "--file", "200kB", "--out", small).succeeded()
    assert small.stat().st_size <= 202_000
    assert copy_tokenizer(small, 320) == copy_tokenizer(whole, 320)
    assert json.loads((tmp_path / "small.gguf.export.json").read_text())["details"]["tokenizer_agrees"]
    command("export", whole, "--to", "hf", "--out", tmp_path / "hf").succeeded()
    assert (tmp_path / "hf" / "config.json").is_file()
    command("export", whole, "--to", "gguf", "--out", whole, "--overwrite").refused("which this command reads")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but cut")
    command("export", tmp_path / "bad.gguf", "--to", "hf", "--out", tmp_path / "x").refused("bad.gguf")
    made = ["bad.gguf", "hf", "model", "small.gguf", "small.gguf.export.json", "whole.gguf", "whole.gguf.export.json"]
    assert names(tmp_path) == made


def test_a_hub_id_that_is_not_there(command, tmp_path):
    command("export", "nobody/nothing", "--to", "hf", "--out", tmp_path / "out").refused("can't find the model")
    assert names(tmp_path) == []
