"""No weight is made up and no code is run: GGUF files and unknown families through transformers."""

import json
import re
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.tokenizer import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.models.opened import open_model
from darwinlm.models.resolve import resolve_model
from darwinlm.runtime.errors import CheckpointError, MissingExtraError, RemoteCodeError, install


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


@pytest.fixture
def unknown(tmp_path: Path) -> Path:
    """A GPT-2, which can be measured but not pruned."""
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_an_unknown_family_with_missing_weights(unknown):
    assert open_model(str(unknown), dtype="float32").params > 0
    path = unknown / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("h.1.mlp.c_fc.weight"))
    tensors[name.replace("c_fc", "c_fx")] = tensors.pop(name)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks the tensor transformer\.h\.1\.mlp\.c_fc\.weight"):
        open_model(str(unknown), dtype="float32")


def surplus(tensors, _):
    tensors["transformer.h.2.mlp.c_fc.weight"] = torch.zeros(32, 128)
    return "which a model with its config.json does not have"


def fewer_blocks(_, folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_layer": 1}))
    return "which a model with its config.json does not have"


def whole_numbers(tensors, _):
    name = next(key for key in tensors if key.endswith("h.1.mlp.c_fc.weight"))
    tensors[name] = tensors[name].to(torch.int8)
    return "I8"


def another_head(tensors, _):
    tensors["lm_head.weight"] = torch.ones(300, 32)
    return "ties the head to the embedding, which differs"


def an_index_that_leads_out(tensors, folder):
    save_file(tensors, folder.parent / "outside.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "../outside.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return "points outside its folder"


@pytest.mark.parametrize("damage", [surplus, fewer_blocks, whole_numbers, another_head, an_index_that_leads_out])
def test_an_unknown_family_whose_weights_are_others(unknown, damage):
    path = unknown / "model.safetensors"
    tensors = load_file(path)
    message = damage(tensors, unknown)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        open_model(str(unknown), dtype="float32")


def test_an_unknown_family_with_pickled_weights(unknown):
    tensors = load_file(unknown / "model.safetensors")
    torch.save(tensors, unknown / "pytorch_model.bin")
    (unknown / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        open_model(str(unknown), dtype="float32")


@pytest.fixture
def with_code(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer is code of its own."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    tree = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tree))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n")
    return folder


def test_a_tokenizer_with_code_of_its_own_is_refused_without_a_question(with_code, tmp_path, monkeypatch):
    def ask(*_: object) -> str:
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)
    with pytest.raises(RemoteCodeError, match=r"the tokenizer of .+ wants to run its own .+ --allow-remote-code"):
        Checkpoint.open(with_code).tokenizer()
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_gguf_file_needs_its_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    message = f"reading model.gguf needs the package '{package}': {install('gguf')}"
    with pytest.raises(MissingExtraError, match=re.escape(message)):
        resolve_model(str(tmp_path / "model.gguf"), tmp_path / "source")
    assert not (tmp_path / "source").exists()
