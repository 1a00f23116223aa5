"""Quantised checkpoints are read as the floats that they stand for, by every stage, and saved as plain models."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny import packing
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import edit_config
from tests.tiny.stages import run_stages
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import CheckpointError
from darwinlm.vocabulary.cut import cut_weights

E4M3 = torch.float8_e4m3fn
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
BITS = {"quant_method": "bitsandbytes"}
FP8 = {"quant_method": "fp8", "weight_block_size": [32, 32]}


def compressed(name, **weights):
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "format": name}}
    return {"quant_method": "compressed-tensors", "format": name, "config_groups": groups}


FORMATS = {
    "FP8 blocks": (partial(packing.with_scale, kind=E4M3, block=(32, 32), ending=".weight_scale_inv"), FP8),
    "FP8": (partial(packing.with_scale, kind=E4M3, block=None, ending=".weight_scale_inv"), {"quant_method": "fp8"}),
    "FP8 of old": (partial(packing.with_scale, kind=E4M3, block=None, ending=".weight_scale"), {"quant_method": "fp8"}),
    "packed": (packing.pack_quantized, compressed("pack-quantized")),
    "packed, symmetric": (partial(packing.pack_quantized, bits=8, symmetric=True), compressed("pack-quantized")),
    "int8 rows": (
        partial(packing.with_scale, kind=torch.int8, block=(1, 1000), ending=".weight_scale"),
        compressed("int-quantized"),
    ),
    "compressed FP8": (
        partial(packing.with_scale, kind=E4M3, block=(32, 32), ending=".weight_scale"),
        compressed("float-quantized", block_structure=[32, 32]),
    ),
    "GPTQ": (packing.gptq, GPTQ),
    "GPTQ, 8 bits": (partial(packing.gptq, bits=8), GPTQ),
    "GPTQ, activation order": (partial(packing.gptq, mixed=True), GPTQ),
    "GPTQ, second version": (partial(packing.gptq, first=False), {**GPTQ, "checkpoint_format": "gptq_v2"}),
    "AWQ": (packing.awq, AWQ),
    "NF4": (partial(packing.four_bits, nested=False), BITS),
    "NF4, nested": (partial(packing.four_bits, nested=True), BITS),
    "LLM.int8": (packing.eight_bits, BITS),
}


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_those_that_are_stored(name, model_copy):
    how, config = FORMATS[name]
    expected = packing.quantise(model_copy, how, config)
    checkpoint = Checkpoint.open(model_copy)
    read = checkpoint.read(dtype=torch.float32)
    for weight, value in expected.items():
        torch.testing.assert_close(read[weight], value.float(), rtol=1e-6, atol=1e-9)
    assert not hasattr(checkpoint.load(torch.float32).config, "quantization_config")


def test_a_smaller_model_is_plain(model_copy, make_run, tmp_path):
    packing.quantise(model_copy, *FORMATS["GPTQ"])
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
    packing.quantise(folder, *FORMATS["FP8 blocks"])
    dequantised = FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=dequantised)
    ours = Checkpoint.open(folder).read(dtype=torch.float32)
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers_are_those_of_compressed_tensors(symmetric):
    reason = "compressed-tensors isn't installed"
    compressors = pytest.importorskip("compressed_tensors.compressors.base", reason=reason)
    arguments = pytest.importorskip("compressed_tensors.quantization", reason=reason)
    stored, expected = packing.pack_quantized(torch.empty(48, 32), symmetric=symmetric)
    weights = arguments.QuantizationArgs(num_bits=4, strategy="group", group_size=packing.GROUP, symmetric=symmetric)
    scheme = arguments.QuantizationScheme(targets=["Linear"], weights=weights)
    theirs = compressors.BaseCompressor.get_value_from_registry("pack-quantized")
    read = theirs.decompress({name[1:]: tensor for name, tensor in stored.items()}, scheme)["weight"]
    torch.testing.assert_close(read, expected.to(read.dtype))


def test_codes_are_those_of_bitsandbytes(folder):
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes isn't installed")

    def how(weight):
        codes, state = functional.quantize_4bit(weight.bfloat16(), compress_statistics=True, quant_type="nf4")
        stored = {f".weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        return {".weight": codes, **stored}, functional.dequantize_4bit(codes, state)

    theirs = packing.quantise(folder, how, BITS)
    ours = Checkpoint.open(folder).read(dtype=torch.bfloat16)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def _without(ending):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.endswith(ending)][:0]


def _scaled(tensors):
    for name in [name for name in tensors if name.endswith(".scales")]:
        tensors[name] = tensors[name][:-1].contiguous()


REFUSED = {
    "an unknown method": ("GPTQ", {"quant_method": "hqq"}, None, "says hqq"),
    "another version": ("AWQ", {**AWQ, "version": "gemv"}, None, "the version gemv"),
    "another format": ("GPTQ", {**GPTQ, "checkpoint_format": "marlin"}, None, "the format marlin"),
    "another compressed format": ("packed", compressed("nvfp4-pack-quantized"), None, "nvfp4"),
    "no scales": ("GPTQ", GPTQ, _without(".scales"), r"without .*scales"),
    "no scales of FP8": (
        "FP8",
        {"quant_method": "fp8"},
        _without("layers.0.mlp.up_proj.weight_scale_inv"),
        "nothing that turns them into floats",
    ),
    "too few scales": ("GPTQ", GPTQ, _scaled, "don't fit"),
    "floats": ("GPTQ", GPTQ, lambda t: [t.update({n: v.float()}) for n, v in t.items()], "holds F32"),
    "nothing quantised": ("GPTQ", FP8, _without("qweight"), "none has .*weight_scale_inv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cant_be_read_is_refused_at_once(name, model_copy):
    which, config, change, message = REFUSED[name]
    packing.quantise(model_copy, *FORMATS[which])
    edit_config(model_copy, quantization_config=config)
    path = model_copy / "model.safetensors"
    tensors = load_file(path)
    if change is not None:
        change(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(model_copy)


def test_a_quantised_embedding_cant_be_cut(model_copy, tmp_path):
    packing.quantise(model_copy, *FORMATS["GPTQ"])
    path = model_copy / "model.safetensors"
    tensors = load_file(path)
    stored, _ = packing.gptq(tensors.pop("lm_head.weight"))
    path.unlink()
    save_file(tensors | {f"lm_head{ending}": tensor.contiguous() for ending, tensor in stored.items()}, path)
    with pytest.raises(CheckpointError, match="leave out --vocab"):
        cut_weights(Checkpoint.open(model_copy), range(100), tmp_path / "cut")
