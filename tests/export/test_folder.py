"""Exports that are folders: element types, stock shapes, and what vLLM needs."""

import json

import pytest
import torch
from tests.tiny.cutting import Kept, cut, near
from tests.tiny.models import FAMILIES
from tests.tiny.pruned import logits_of as logits
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint
from tests.tiny.tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from darwinlm.export.run import export_model
from darwinlm.families.family import families
from darwinlm.runtime.errors import ExportError

MIXED = {0: (0, 0, 96), 1: (2, 2, 0), 2: (2, 1, 40)}


EXPERTS = {0: (4, 2, 64), 1: (4, 2, 0), 2: (4, 2, 24)}
"""Of mixtures of experts the MLPs alone are pruned."""
WHOLE = {0: (0, 0, 96), 1: (4, 2, 0), 2: (4, 2, 40)}
"""Where an attention stays whole or goes."""


OWN_SIZES = (
    *("deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite"),
    *("gemma4_text", "gemma4_text_experts", "granitemoehybrid", "granitemoehybrid_experts", "lfm2"),
    *("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next"),
)
"""Families whose layers of several kinds, or compressed attention, don't take the sizes of the other tests."""


@pytest.mark.parametrize("model_type", OWN_SIZES)
def test_dense_of_hybrids_and_of_compressed_attention(tmp_path, model_type):
    pruned = cut(model_type, [Kept(), Kept(mlp=1 / 2), Kept(mlp=0), Kept(mlp=1 / 3)])
    pruned.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    report = export_model(tmp_path / "model", tmp_path / "dense", to="dense")
    assert report.comparisons[0].left == "masked dense"
    stated = json.loads((tmp_path / "dense" / "config.json").read_text())["model_type"]
    assert stated == families()[model_type].model_type
    near(logits(tmp_path / "dense"), logits(tmp_path / "model"), pruned)


@pytest.mark.parametrize("model_type", [name for name in FAMILIES if name not in OWN_SIZES])
def test_dense_has_stock_shapes_and_computes_the_same(tmp_path, model_type):
    overrides = {"no_rope_layers": [1, 0, 1]} if model_type == "smollm3" else {}
    if "layer_types" in FAMILIES[model_type]:
        overrides = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    if model_type in ("olmoe", "helium"):
        overrides = {"head_dim": 16}  # norms or an output projection as wide as the model
    if model_type in ("qwen2_moe", "qwen3_moe"):
        overrides = {"mlp_only_layers": [], "moe_intermediate_size": 96}
    rows = {"heads": MIXED, "whole": WHOLE, "never": EXPERTS}[families()[model_type].attention.cut]
    folder = pruned_checkpoint(tmp_path / "model", model_type, rows, **overrides)
    report = export_model(folder, tmp_path / "dense", to="dense")
    assert report.comparisons[0].left == "masked dense"
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert config["model_type"] == model_type
    assert "auto_map" not in config
    assert not list((tmp_path / "dense").glob("*.py"))
    torch.testing.assert_close(logits(tmp_path / "dense"), logits(folder), atol=5e-5, rtol=5e-5)
    assert any("as large and slow" in note for note in report.notes)


@pytest.mark.parametrize(("model_type", "projection"), [("llama", "k_proj"), ("phi3", "qkv_proj")])
def test_unevenly_shared_heads_become_dense_and_plain_linear_layers_for_vllm(tmp_path, model_type, projection):
    folder = pruned_checkpoint(tmp_path / "model", model_type, {1: (3, 2, 96)}, query_groups={1: (0, 0, 1)})
    for to in ("dense", "vllm"):
        export_model(folder, tmp_path / to, to=to)
        torch.testing.assert_close(logits(tmp_path / to), logits(folder), atol=2e-5, rtol=2e-5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "vllm")
    assert type(getattr(model.model.layers[1].self_attn, projection)) is torch.nn.Linear


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "olmo2"])
def test_vllm_gets_a_zero_head_or_zeros_where_attention_is_gone(tmp_path, model_type):
    rows, overrides = WHOLE if model_type == "olmo2" else MIXED, {}
    if "layer_types" in FAMILIES[model_type]:
        overrides = {"layer_types": ["full_attention"] * 3}
    folder = pruned_checkpoint(tmp_path / "model", model_type, rows, **overrides)
    report = export_model(folder, tmp_path / "out", to="vllm")
    layers = json.loads((tmp_path / "out" / "config.json").read_text())["per_layer_config"]
    assert (tmp_path / "out" / "modeling_darwinlm.py").is_file()
    torch.testing.assert_close(logits(tmp_path / "out"), logits(folder), atol=2e-5, rtol=2e-5)
    if model_type == "olmo2":
        assert "an attention of zeros instead of no attention: blocks 0" in report.notes
        return
    assert "skip" not in layers.get("0", layers.get("00", {}))
    assert next(iter(layers.values())).items() >= {"num_attention_heads": 1, "num_key_value_heads": 1}.items()
    assert "one zero head instead of no attention: blocks 0" in report.notes


def test_tensor_parallel_sizes_are_checked(tmp_path):
    folder = pruned_checkpoint(tmp_path / "model", "llama", {0: (2, 2, 64), 1: (2, 1, 96)})
    with pytest.raises(ExportError, match=r"--tensor-parallel 2: .* block 1 \(KV heads 1\)"):
        export_model(folder, tmp_path / "out", to="vllm", tensor_parallel=2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    whole = pruned_checkpoint(tmp_path / "whole", "llama", {0: (2, 2, 64)})
    assert export_model(whole, tmp_path / "out", to="vllm", tensor_parallel=2).details["tensor_parallel"] == 2


@pytest.mark.parametrize("model_type", ["llama", "mixtral"])
def test_hf_changes_the_element_type(tmp_path, model_type):
    folder = plain_checkpoint(tmp_path / "model", model_type)
    report = export_model(folder, tmp_path / "out", to="hf", dtype="bfloat16")
    assert report.comparisons[-1].relative < 1e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert report.bytes < 0.6 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the river").input_ids
    saved = json.loads((tmp_path / "out" / "export.json").read_text())
    assert saved["format"] == "hf"


def test_a_model_without_a_tokenizer_is_compared_on_random_tokens(tmp_path):
    folder = plain_checkpoint(tmp_path / "model", "llama")
    for path in folder.glob("token*"):
        path.unlink()
    report = export_model(folder, tmp_path / "out", to="hf")
    assert any("random tokens" in note for note in report.notes)
