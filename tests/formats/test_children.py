"""Processes of ours: they run nothing of a hostile folder, and their end is a message."""

import sys
from pathlib import Path

import pytest
from tests.tiny.pruned import pruned_checkpoint

from darwinlm.formats.gguf import stock_layout as layout
from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.errors import EngineError, ExportError


@pytest.fixture
def hostile(model_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder with modules of the names that processes import, as the current folder."""
    for name in ("json", "numpy", "torch", "gguf", "cyllama", "sitecustomize", "darwinlm", "subprocess"):
        (model_copy / f"{name}.py").write_text(f"open({str(model_copy / 'RAN')!r}, 'w').close()\n")
    monkeypatch.chdir(model_copy)
    monkeypatch.setenv("PYTHONPATH", ":".join(["", *filter(None, sys.path), ""]))
    return model_copy


def test_an_engine(hostile, gguf_bytes):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    Path("in.gguf").write_bytes(gguf_bytes)
    with EngineProcess("llama.cpp", Path("in.gguf")) as engine:
        assert len(engine.generate([3, 4], 2)[0]) == 2
    assert not (hostile / "RAN").exists()


def test_an_engine_that_dies_is_a_message(tmp_path, monkeypatch):
    """A width of 0 in the last block makes llama.cpp abort its process."""
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    folder = pruned_checkpoint(tmp_path / "model", "llama", {2: (4, 2, 0)})
    monkeypatch.setattr(layout, "_padded", lambda sizes, *_, **__: sizes)
    with pytest.raises(ExportError, match=r"the export fails its check: llama.cpp died .*nothing was written"):
        export_model(folder, tmp_path / "m.gguf", quantisation="f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(EngineError, match="can't load"), EngineProcess("llama.cpp", tmp_path / "nothing"):
        pass
