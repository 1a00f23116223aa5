"""Quantised checkpoints are read as the floats that they stand for, by every stage, and saved as plain models."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import edit_config, edit_weights
from tests.tiny.stages import run_stages
from torch import Tensor
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.surgery.fewer_tokens import cut_weights
from darwinlm.runtime.errors import CheckpointError

E4M3 = torch.float8_e4m3fn
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32]}


Tensors = dict[str, Tensor]
Packed = tuple[Tensors, Tensor]
"""Stored tensors by ending, and the weight that they stand for."""


def with_scale(weight: Tensor, kind: torch.dtype, block: tuple[int, int] | None, ending: str) -> Packed:
    """Numbers with a scale for each block, or one for all."""
    values = torch.randint(-100, 100, weight.shape).float().to(kind)
    if block is None:
        scale = torch.tensor(0.01)
        return {".weight": values, ending: scale}, values.float() * scale
    shape = [-(-size // part) for size, part in zip(weight.shape, block, strict=True)]
    scale = 0.01 * torch.rand(shape) + 0.001
    wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return {".weight": values, ending: scale}, values.float() * wide[: weight.shape[0], : weight.shape[1]]


def quantise(folder: Path, how: Callable[[Tensor], Packed], config: dict[str, Any]) -> Tensors:
    """Replace the projections of a plain checkpoint; returns the weights that they stand for now."""
    expected = {}

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("proj.weight")]:
            stored, expected[name] = how(tensors.pop(name))
            tensors |= {name.removesuffix(".weight") + ending: each for ending, each in stored.items()}

    edit_weights(folder, change)
    edit_config(folder, quantization_config=config)
    return expected


def compressed(name, **weights):
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "format": name}}
    return {"quant_method": "compressed-tensors", "format": name, "config_groups": groups}


FORMATS = {
    "FP8 blocks": (partial(with_scale, kind=E4M3, block=(32, 32), ending=".weight_scale_inv"), FP8),
    "FP8": (partial(with_scale, kind=E4M3, block=None, ending=".weight_scale_inv"), {"quant_method": "fp8"}),
    "FP8 of old": (partial(with_scale, kind=E4M3, block=None, ending=".weight_scale"), {"quant_method": "fp8"}),
    "compressed FP8": (
        partial(with_scale, kind=E4M3, block=(32, 32), ending=".weight_scale"),
        compressed("float-quantized", block_structure=[32, 32]),
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_those_that_are_stored(name, model_copy):
    how, config = FORMATS[name]
    expected = quantise(model_copy, how, config)
    checkpoint = Checkpoint.open(model_copy)
    read = checkpoint.read(dtype=torch.float32)
    for weight, value in expected.items():
        torch.testing.assert_close(read[weight], value.float(), rtol=1e-6, atol=1e-9)
    assert not hasattr(checkpoint.load(torch.float32).config, "quantization_config")


def test_a_smaller_model_is_plain(model_copy, make_run, tmp_path):
    quantise(model_copy, *FORMATS["FP8 blocks"])
    run_stages(make_run(model_copy, tmp_path / "out"), "export")
    plain = Checkpoint.open(tmp_path / "out" / "model")
    assert not plain.formats
    assert "quantization_config" not in json.loads((plain.folder / "config.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """A model whose rows are whole blocks and runs, without which transformers and bitsandbytes go wrong."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_attention_heads": 4}
    return tiny_checkpoint(tmp_path / "model", "llama", num_key_value_heads=2, **sizes)


def test_fp8_is_what_transformers_reads(folder):
    quantise(folder, *FORMATS["FP8 blocks"])
    dequantised = FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=dequantised)
    ours = Checkpoint.open(folder).read(dtype=torch.float32)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def _without(ending):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(ending)][:0]


def _scaled(tensors):
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors[name] = tensors[name][:-1].contiguous()


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16}
ORIGINAL = "prune the model that it was made from, and quantise the result"
REFUSED = {
    "GPTQ": (GPTQ, None, f"says gptq.*{ORIGINAL}"),
    "AWQ": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, None, f"says awq.*{ORIGINAL}"),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None, f"says bitsandbytes.*{ORIGINAL}"),
    "packed integers": (compressed("pack-quantized"), None, f"the format pack-quantized.*{ORIGINAL}"),
    "integers": (compressed("naive-quantized", type="int", num_bits=8), None, f"with integers.*{ORIGINAL}"),
    "sparse": ({**compressed("float-quantized"), "sparsity_config": {"format": "sparse-24"}}, None, "sparse-24"),
    "a block of one number": ({**FP8, "weight_block_size": [32]}, None, r"a block of \[32\]"),
    "no scales": (FP8, _without("layers.0.mlp.up_proj.weight_scale_inv"), "nothing that turns them into floats"),
    "no numbers": (FP8, _without("layers.0.mlp.up_proj.weight"), "without .*up_proj.weight: fetch"),
    "too few scales": (FP8, _scaled, "don't fit"),
    "floats": (FP8, lambda t: [t.update({n: v.float()}) for n, v in t.items()], "holds F32"),
    "nothing quantised": (FP8, _without("_scale_inv"), "none has .*weight_scale_inv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cant_be_read_is_refused_at_once(name, model_copy):
    config, change, message = REFUSED[name]
    quantise(model_copy, *FORMATS["FP8 blocks"])
    edit_config(model_copy, quantization_config=config)
    edit_weights(model_copy, change or (lambda tensors: None))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(model_copy)


def test_a_quantised_embedding_cant_be_cut(model_copy, tmp_path):
    how, config = FORMATS["FP8"]
    quantise(model_copy, how, config)
    path = model_copy / "model.safetensors"
    tensors = load_file(path)
    stored, _ = how(tensors.pop("lm_head.weight"))
    path.unlink()
    save_file(tensors | {f"lm_head{ending}": tensor.contiguous() for ending, tensor in stored.items()}, path)
    with pytest.raises(CheckpointError, match="leave out --vocab"):
        cut_weights(Checkpoint.open(model_copy), range(100), tmp_path / "cut")
