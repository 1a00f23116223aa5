"""No weight is made up and no code is run: GGUF files through transformers, and tokenizers."""

import re
import struct
import sys

import pytest

from darwinlm.engines.resolve import resolve_model
from darwinlm.runtime.errors import CheckpointError, MissingExtraError, install


@pytest.mark.parametrize(
    "name",
    [b"blk.1.attn_q.weight", b"blk.2.ffn_down.weight", b"output.weight", b"token_embd.weight", b"output_norm.weight"],
)
def test_a_renamed_tensor_of_a_gguf_file(gguf_bytes, tmp_path, name):
    """A tensor that goes by another name is missing, and the model isn't filled up with random numbers."""
    stored = struct.pack("<Q", len(name)) + name
    assert gguf_bytes.count(stored) == 1
    (tmp_path / "m.gguf").write_bytes(gguf_bytes.replace(stored, stored.replace(b"weight", b"weighx")))
    with pytest.raises(CheckpointError, match=r"m\.gguf.*(lacks|weights)"):
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
