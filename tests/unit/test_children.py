"""Processes that are started in a hostile folder run nothing of it."""

import sys
from pathlib import Path

import pytest

from darwinlm.engines.process import EngineProcess, quantise_file


@pytest.fixture
def hostile(model_copy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder with modules of the names that processes import, as the current folder."""
    for name in ("json", "numpy", "torch", "gguf", "cyllama", "sitecustomize", "darwinlm", "subprocess"):
        (model_copy / f"{name}.py").write_text(f"open({str(model_copy / 'RAN')!r}, 'w').close()\n")
    monkeypatch.chdir(model_copy)
    monkeypatch.setenv("PYTHONPATH", ":".join(["", *filter(None, sys.path), ""]))
    return model_copy


def test_an_engine(hostile):
    with EngineProcess("torch", Path()) as engine:
        assert len(engine.greedy([3, 4], 2)) == 2
    assert not (hostile / "RAN").exists()


def test_the_quantiser(hostile, gguf_bytes, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    Path("in.gguf").write_bytes(gguf_bytes)
    quantise_file(Path("in.gguf"), Path("out.gguf"), "Q8_0", 1)
    assert Path("out.gguf").is_file()
    assert not (hostile / "RAN").exists()
