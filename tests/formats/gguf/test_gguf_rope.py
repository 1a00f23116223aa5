"""Scaled rotary embeddings in GGUF files, in the real llama.cpp."""

import pytest
import torch
from tests.tiny.llama_cpp import LLAMA3, assert_checked_in_the_library, assert_same_as_transformers, exported
from tests.tiny.pruned import MIXED, SQUARE, any_checkpoint
from transformers import AutoModelForCausalLM

from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.runtime.errors import ExportError

pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")


def yarn(**more):
    """The context of 512 tokens is eight times the original one."""
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64}
    return {"rope_parameters": rope | more}


def longrope(pairs, **more):
    factors = {"short_factor": [1 + 0.1 * i for i in range(pairs)], "long_factor": [2 + 0.2 * i for i in range(pairs)]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 256, **factors}
    return {"rope_parameters": rope | more, "original_max_position_embeddings": 256}


HALF = SQUARE | longrope(8, partial_rotary_factor=0.5)
LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}
PROPORTIONAL = {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}
GEMMA3 = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}

CASES = {
    "yarn, llama": ("llama", "llama", None, yarn()),
    "yarn, unequal llama, its own magnitude": ("llama", "deci", MIXED, yarn(attention_factor=1.3)),
    "yarn, its magnitude from two numbers": ("llama", "llama", None, yarn(mscale=1.0, mscale_all_dim=0.5)),
    "yarn, other bounds": ("llama", "deci", MIXED, yarn(beta_fast=4.0, beta_slow=2.0)),
    "yarn, untruncated bounds": ("qwen2", "deci", None, SQUARE | yarn(truncate=False)),
    "yarn, qwen3": ("qwen3", "qwen3", None, yarn()),
    "linear, llama": ("llama", "llama", None, LINEAR),
    "linear, unequal qwen3": ("qwen3", "openelm", MIXED, LINEAR),
    "linear, gemma3's full layers": ("gemma3_text", "gemma3", None, GEMMA3),
    "llama3, llama": ("llama", "llama", None, LLAMA3),
    "longrope, llama": ("llama", "llama", None, longrope(16)),
    "longrope, phi3": ("phi3", "phi3", None, SQUARE | longrope(16)),
    "longrope, phi3 of which half a head turns": ("phi3", "phi3", None, HALF),
    "longrope, unequal phi3 of which half a head turns": ("phi3", "deci", MIXED, HALF),
    "dynamic": ("llama", "llama", None, DYNAMIC),
}
CONTINUED = ("yarn, unequal llama, its own magnitude", "longrope, unequal phi3 of which half a head turns")
"""Where greedy tokens are compared too."""


@pytest.mark.filterwarnings("ignore")  # transformers finds tiny models' numbers odd
@pytest.mark.parametrize("case", CASES)
def test_scaled_rotary_embeddings(tmp_path, case):
    model_type, architecture, rows, overrides = CASES[case]
    folder = any_checkpoint(tmp_path / "model", model_type, rows, **overrides)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert report["details"]["architecture"] == architecture
    assert_checked_in_the_library(report, 1e-3 if "gemma" in case else 1e-5)
    if case in CONTINUED:
        assert_same_as_transformers(folder, tmp_path / "m.gguf", 1e-4)


@pytest.mark.parametrize("rows", [None, MIXED], ids=["phi3", "deci"])
def test_longrope_takes_the_long_factors_in_long_contexts(tmp_path, rows):
    folder = any_checkpoint(tmp_path / "model", "phi3", rows, **HALF)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert any("larger than 256 tokens" in note for note in report["notes"])
    ids = torch.randint(3, 300, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits[0]
    with EngineProcess("llama.cpp", tmp_path / "m.gguf", exact=True, context=512) as engine:
        found = torch.from_numpy(engine.logits(ids[0].tolist()))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("model_type", "rows", "overrides", "reason"),
    [
        ("qwen3", None, LLAMA3, "which llama.cpp reads neither in qwen3 nor in openelm"),
        ("qwen3", MIXED, yarn(beta_slow=2.0), "which llama.cpp reads neither in qwen3 nor in openelm"),
        ("gemma", None, LLAMA3, "its rope scaling of the type llama3 has a divisor for every frequency"),
        ("qwen3_moe", None, LLAMA3 | {"mlp_only_layers": []}, "a divisor for every frequency, which its architecture"),
        ("llama", None, PROPORTIONAL, "of the type proportional"),
    ],
)
def test_scalings_that_no_architecture_holds(tmp_path, model_type, rows, overrides, reason):
    folder = any_checkpoint(tmp_path / "model", model_type, rows, **overrides)
    with pytest.raises(ExportError, match=f"{reason}.*vLLM may"):
        exported(folder, tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
