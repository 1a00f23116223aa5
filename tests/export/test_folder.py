"""Folders for vLLM, and which layers it gives an attention."""

import importlib
import json
import sys
import types

import pytest
import torch
from tests.tiny.models import FAMILIES
from tests.tiny.pruned import logits_of as logits
from tests.tiny.pruned import pruned_checkpoint
from transformers import AutoModelForCausalLM

from darwinlm.export.run import export_model
from darwinlm.families.family import families
from darwinlm.runtime.errors import ExportError

MIXED = {0: (0, 0, 96), 1: (2, 2, 0), 2: (2, 1, 40)}


EXPERTS = {0: (4, 2, 64), 1: (4, 2, 0), 2: (4, 2, 24)}
"""Of mixtures of experts the MLPs alone are pruned."""
WHOLE = {0: (0, 0, 96), 1: (4, 2, 0), 2: (4, 2, 40)}
"""Where an attention stays whole or goes."""


FAMILIES_OF_VLLM = (
    *("llama", "phi3", "gemma2", "gemma3_text", "olmo2", "nemotron", "helium", "smollm3"),
    *("mixtral", "qwen2_moe", "gpt_oss"),
)


@pytest.mark.parametrize("model_type", FAMILIES_OF_VLLM)
def test_a_folder_for_vllm_computes_the_same(tmp_path, model_type):
    overrides = {"no_rope_layers": [1, 0, 1]} if model_type == "smollm3" else {}
    if "layer_types" in FAMILIES[model_type]:
        overrides = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    if model_type == "helium":
        overrides = {"head_dim": 16}  # an output projection as wide as the model
    if model_type == "qwen2_moe":
        overrides = {"mlp_only_layers": [], "moe_intermediate_size": 96}
    rows = {"heads": MIXED, "whole": WHOLE, "never": EXPERTS}[families()[model_type].attention.cut]
    folder = pruned_checkpoint(tmp_path / "model", model_type, rows, **overrides)
    report = export_model(folder, tmp_path / "out", to="vllm")
    assert [row.left for row in report.comparisons] == ["masked dense", "pruned in memory"]
    torch.testing.assert_close(logits(tmp_path / "out"), logits(folder), atol=5e-5, rtol=5e-5)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["format"] == "vllm"


@pytest.mark.parametrize(("model_type", "projection"), [("llama", "k_proj"), ("phi3", "qkv_proj")])
def test_unevenly_shared_heads_become_plain_linear_layers_for_vllm(tmp_path, model_type, projection):
    folder = pruned_checkpoint(tmp_path / "model", model_type, {1: (3, 2, 96)}, attention="query_head")
    export_model(folder, tmp_path / "vllm", to="vllm")
    torch.testing.assert_close(logits(tmp_path / "vllm"), logits(folder), atol=2e-5, rtol=2e-5)
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


@pytest.fixture
def present_runs(monkeypatch):
    """The module imports vLLM; the function doesn't need it."""
    names = ["vllm", "vllm.model_executor", "vllm.model_executor.models", "vllm.model_executor.models.transformers"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    last = sys.modules[names[-1]]
    last.base = types.SimpleNamespace()
    last.TransformersForCausalLM = type("TransformersForCausalLM", (), {})
    last.TransformersMoEForCausalLM = type("TransformersMoEForCausalLM", (), {})
    monkeypatch.delitem(sys.modules, "darwinlm.engines.vllm_model", raising=False)
    yield importlib.import_module("darwinlm.engines.vllm_model").present_runs
    sys.modules.pop("darwinlm.engines.vllm_model", None)


@pytest.mark.parametrize(
    ("present", "bounds", "runs"),
    [
        ("111", (0, 3), [(0, 3)]),
        ("011", (0, 3), [(1, 3)]),
        ("101101", (0, 6), [(0, 1), (2, 4), (5, 6)]),
        ("101101", (1, 5), [(2, 4)]),
        ("000", (0, 3), []),
        ("110", (0, 3), [(0, 2)]),
    ],
)
def test_runs_of_layers_with_attention(present_runs, present, bounds, runs):
    assert list(present_runs([flag == "1" for flag in present], *bounds)) == runs
