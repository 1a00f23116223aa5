"""GGUF files that are read: divisors of rotary frequencies, tensors that are missing, and the extra that it takes."""

import re
import struct
import sys

import pytest
import torch
from tests.tiny.pruned import plain_checkpoint

from darwinlm.formats.gguf.checked_file import export_gguf
from darwinlm.formats.resolve import resolve_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import CheckpointError, MissingExtraError, install

gguf = pytest.importorskip("gguf")


LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
}


def divisors(path):
    return next(torch.tensor(t.data) for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight")


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_divisors_become_its_settings(tmp_path, factor):
    stated = LLAMA3["rope_parameters"] | {"factor": factor}
    folder = plain_checkpoint(tmp_path / "model", "llama", **LLAMA3 | {"rope_parameters": stated})
    export_gguf(Checkpoint.open(folder), tmp_path / "m.gguf", quantisation="f32")
    rope = resolve_model(str(tmp_path / "m.gguf"), tmp_path / "work").config.rope_parameters
    assert {name: rope[name] for name in stated} == pytest.approx(stated)


@pytest.mark.parametrize("change", [lambda factors: factors.flip(0), lambda factors: factors * 0.5])
def test_divisors_of_something_else_are_refused(tmp_path, change):
    folder = plain_checkpoint(tmp_path / "model", "llama", **LLAMA3)
    path = tmp_path / "m.gguf"
    export_gguf(Checkpoint.open(folder), path, quantisation="f32")
    factors, data = divisors(path), path.read_bytes()
    stored = factors.numpy().tobytes()
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, change(factors).numpy().tobytes()))
    with pytest.raises(
        CheckpointError, match=r"m\.gguf scales its rotary embedding by the tensor rope_freqs\.weight in a way that"
    ):
        resolve_model(str(path), tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "name",
    [b"blk.1.attn_q.weight", b"blk.2.ffn_down.weight", b"output.weight", b"token_embd.weight", b"output_norm.weight"],
)
def test_a_renamed_tensor_of_a_gguf_file(gguf_bytes, tmp_path, name):
    """A tensor that goes by another name is missing, and the model isn't filled up with random numbers."""
    stored = struct.pack("<Q", len(name)) + name
    assert gguf_bytes.count(stored) == 1
    (tmp_path / "m.gguf").write_bytes(gguf_bytes.replace(stored, stored.replace(b"weight", b"weighx")))
    with pytest.raises(CheckpointError, match=r"m\.gguf.*(lacks|also holds) the tensor"):
        resolve_model(str(tmp_path / "m.gguf"), tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_gguf_file_needs_its_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    message = f"reading model.gguf needs the package '{package}': {install('gguf')}"
    with pytest.raises(MissingExtraError, match=re.escape(message)):
        resolve_model(str(tmp_path / "model.gguf"), tmp_path / "source")
    assert not (tmp_path / "source").exists()
