"""`darwinlm export` and bad input: one clear message, status 2, nothing half-written."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint

from darwinlm.formats.gguf.engine import ENGINES
from darwinlm.formats.gguf.tokenizer_keys import copy_tokenizer
from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.runs.exporting import export_model


@pytest.fixture
def model(tmp_path):
    return pruned_checkpoint(tmp_path / "model", "llama", {1: (2, 1, 40)})


def test_export_shows_what_it_compared(command, model, tmp_path):
    ended = command("export", model, "--quant", "q8_0", "--out", tmp_path / "m.gguf").succeeded()
    rows = re.findall(r"^the model +its (\w+) file in llama.cpp ", ended.out, flags=re.M)
    assert rows == ["f32", "q8_0"], "the file before the rounding, and that which is written"
    assert "block 1: padded from 2 heads and 40 channels to 2 and 64" in ended.out
    assert json.loads((tmp_path / "m.gguf.export.json").read_text())["details"]["quantisation"] == "q8_0"


def test_a_finished_run_stands_for_the_model_in_it(command, finished_copy, tmp_path):
    command("export", finished_copy, "--out", tmp_path / "m.gguf").refused(
        "can't be written for llama.cpp: it has no merges", "--tokenizer-from"
    )
    shutil.rmtree(finished_copy / "stages" / "export")
    command("export", finished_copy, "--out", tmp_path / "x").refused("the run in", "isn't finished")
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--quant q1", ["there is no quantisation 'q1'", "q8_0"]),
        ("--tokenizer-from nowhere.gguf", ["there is no such file"]),
    ],
)
def test_wrong_options(command, model, tmp_path, arguments, parts):
    command("export", model, "--out", tmp_path / "out", *arguments.split()).refused(*parts)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_tokenizer_of_another_model(command, model, tmp_path):
    other = plain_checkpoint(tmp_path / "other", "llama", vocab_size=400)
    file = tmp_path / "other.gguf"
    assert command("export", other, "--out", file).code == 0
    command("export", model, "--out", tmp_path / "m.gguf", "--tokenizer-from", file).refused(
        "has 400 tokens, the model 320"
    )
    assert not (tmp_path / "m.gguf").exists()
    shutil.copy(model / "config.json", tmp_path / "no.gguf")
    command("export", model, "--out", tmp_path / "m.gguf", "--tokenizer-from", tmp_path / "no.gguf").refused(
        "can't read the GGUF file"
    )


def test_a_tokenizer_is_copied(command, model, tmp_path):
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    assert command("export", model, "--out", first).code == 0
    assert command("export", model, "--out", second, "--tokenizer-from", first).code == 0
    assert first.read_bytes()[-1000:] == second.read_bytes()[-1000:]
    assert json.loads((tmp_path / "b.gguf.export.json").read_text())["details"]["tokenizer_agrees"] is True


def test_targets_that_would_destroy_something(command, model, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    command("export", model, "--out", model).refused("which this command reads")
    command("import", model, "--out", tmp_path / "file").refused("needs a folder")
    command("export", model, "--out", tmp_path / "folder").refused("this format is one file")
    command("export", model, "--out", tmp_path / "file").refused("exists", "--overwrite")
    command("import", model, "--out", tmp_path / "folder", "--overwrite").refused("exists and is not a model")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "mine").read_text() == "mine"
    command("export", model, "--out", tmp_path / "file", "--overwrite").refused("is not a GGUF file")
    assert (tmp_path / "file").read_text() == "mine"


def test_without_the_engine_the_extra_is_named(command, model, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="the extra gguf")
    monkeypatch.setitem(ENGINES, LLAMA_CPP, replace(ENGINES[LLAMA_CPP], package="no_such_package"))
    words = ("--quant", "q4_k_m", "--out", tmp_path / "m.gguf")
    command("export", model, *words).refused("quantising to", "[gguf]")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_gguf_file_is_a_model_too(command, tmp_path):
    """Its tokenizer is copied, so that none that transformers knows differently is written."""
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    whole, small = tmp_path / "whole.gguf", tmp_path / "small.gguf"
    export_model(plain_checkpoint(tmp_path / "model", "llama"), whole, quantisation="f32")
    command("export", whole, "--quant", "q8_0", "--out", small).succeeded()
    assert copy_tokenizer(small, 320) == copy_tokenizer(whole, 320)
    assert json.loads((tmp_path / "small.gguf.export.json").read_text())["details"]["tokenizer_agrees"]
    command("export", whole, "--out", whole, "--overwrite").refused("which this command reads")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but cut")
    command("export", tmp_path / "bad.gguf", "--out", tmp_path / "x").refused("bad.gguf")
    made = {"bad.gguf", "model", "small.gguf", "small.gguf.export.json", "whole.gguf", "whole.gguf.export.json"}
    assert {path.name for path in tmp_path.iterdir()} == made
