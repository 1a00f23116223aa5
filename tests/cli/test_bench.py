"""`darwinlm bench`: figures of every engine that is installed, and what it refuses."""

import json

import pytest
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint

from darwinlm.engines.process import ENGINES, EngineProcess
from darwinlm.export.run import export_model
from darwinlm.gguf import layout
from darwinlm.runtime.errors import EngineError, ExportError, install

FAST = ("--prompt-tokens", 24, "--new-tokens", 6, "--runs", 3)


@pytest.fixture
def model(tmp_path):
    return pruned_checkpoint(tmp_path / "model", "llama", {1: (2, 1, 64)})


def assert_complete(path, names):
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["models"]] == names
    for row in found["models"]:
        assert row["file_bytes"] > 10_000
        assert row["peak_memory"] > 10e6
        for figure in ("prompt", "first_token", "decode"):
            spread = row[figure]
            assert len(spread["runs"]) == 3
            assert 0 < spread["low"] <= spread["median"] <= spread["high"]
            assert spread["median"] == sorted(spread["runs"])[1]
        assert row["prompt"]["runs"] == pytest.approx([24_000 / first for first in row["first_token"]["runs"]])
    return found


def test_torch_against_the_dense_model(command, model, tmp_path):
    dense = plain_checkpoint(tmp_path / "dense", "llama")
    ended = command("bench", model, "--against", dense, "--out", tmp_path / "b.json", *FAST).succeeded()
    found = assert_complete(tmp_path / "b.json", [str(model), str(dense)])
    assert found["engine"].startswith("torch (torch 2.")
    left, right = (row["decode"]["runs"] for row in found["models"])
    assert found["ratios"]["decode"]["runs"] == pytest.approx([a / b for a, b in zip(left, right, strict=True)])
    assert "ratio: first model to second" in ended.out
    assert "lowest to highest" in ended.out


def test_llama_cpp_from_a_folder_and_from_a_file(command, model, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    assert command("export", model, "--to", "gguf", "--quant", "q8_0", "--out", tmp_path / "m.gguf").code == 0
    command("bench", tmp_path / "m.gguf", "--out", tmp_path / "b.json", *FAST).succeeded()
    found = assert_complete(tmp_path / "b.json", [str(tmp_path / "m.gguf")])
    assert found["models"][0]["file_bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert found["ratios"] == {}
    command("bench", model, "--engine", "llama.cpp", "--quant", "q8_0", "--out", tmp_path / "c.json", *FAST).succeeded()
    again = assert_complete(tmp_path / "c.json", [str(model)])
    assert again["models"][0]["file_bytes"] == pytest.approx(found["models"][0]["file_bytes"], abs=64)
    assert again["settings"]["quantisation"] == "q8_0"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--engine onnx", ["there is no engine 'onnx'", "torch, llama.cpp, vllm"]),
        ("--engine torch --quant q8_0", ["only the engine llama.cpp takes it"]),
        ("--engine llama.cpp --dtype float32", ["takes --quant"]),
        ("--engine llama.cpp --quant q1", ["there is no quantisation 'q1'"]),
        ("--dtype int8", ["the types are bfloat16, float16, float32"]),
        ("--against nowhere", ["there is no model at 'nowhere'"]),
        ("--runs 0", ["--runs"]),
    ],
)
def test_wrong_options(command, model, tmp_path, arguments, parts):
    command("bench", model, "--out", tmp_path / "b.json", *arguments.split()).refused(*parts)
    assert not (tmp_path / "b.json").exists()


def test_an_output_that_cannot_be_written_is_refused_before_measuring(command, model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("darwinlm.runs.bench.run_bench", None)
    command("bench", model, "--out", tmp_path / "file" / "b.json").refused("can't write")


@pytest.mark.parametrize(("engine", "extra"), [("llama.cpp", "gguf"), ("vllm", "vllm")])
def test_an_engine_that_is_not_installed(command, model, monkeypatch, engine, extra):
    monkeypatch.setitem(ENGINES, engine, ("torch", "not_installed_here", extra))
    command("bench", model, "--engine", engine).refused(f"measuring speed in {engine}", install(extra))


def test_an_engine_that_dies_is_a_message(tmp_path, monkeypatch):
    """A width of 0 in the last block makes llama.cpp abort its process."""
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    folder = pruned_checkpoint(tmp_path / "model", "llama", {2: (4, 2, 0)})
    monkeypatch.setattr(layout, "_padded", lambda sizes, architecture, **_: sizes)
    with pytest.raises(ExportError, match=r"the export fails its check: llama.cpp died .*nothing was written"):
        export_model(folder, tmp_path / "m.gguf", to="gguf", quantisation="f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(EngineError, match="can't load"), EngineProcess("torch", tmp_path / "nothing"):
        pass
