"""Families with norms after sub-layers, capped scores, windows, fused projections or experts, in the real llama.cpp."""

from __future__ import annotations

import pytest
from tests.tiny.llama_cpp import LLAMA3, assert_checked_in_the_library, assert_same_as_transformers, exported
from tests.tiny.models import FAMILIES
from tests.tiny.pruned import any_checkpoint, plain_checkpoint

from darwinlm.export.gguf.layout import LIKE_LLAMA, STOCK, TIED, UNKNOWN
from darwinlm.export.gguf.reference import GgufFile
from darwinlm.families.family import families

pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra llama-cpp")

MIXED = {0: (0, 0, 96), 1: (2, 2, 0), 2: (2, 1, 40)}
SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
SQUARE = {"hidden_size": 128}
STILL = {"sliding_window": None, "layer_types": ["full_attention"] * 3}
LONGER = {"rope_parameters": FAMILIES["ministral3"]["rope_parameters"] | {"original_max_position_embeddings": 256}}
WHOLE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}


def gemma(blocks, period, **more):
    """A window that is much shorter than the text, and scores scaled by something else than the head size."""
    kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(blocks)]
    sizes = {"num_hidden_layers": blocks, "layer_types": kinds, "sliding_window": 8, "query_pre_attn_scalar": 48}
    return sizes | more


EQUAL = {
    "llama": ("llama", "llama", {}),
    "mistral": ("mistral", "llama", {"sliding_window": None}),
    "qwen2": ("qwen2", "qwen2", SQUARE),
    "qwen2 with fewer heads": ("qwen2", "deci", {}),
    "qwen3": ("qwen3", "qwen3", {"tie_word_embeddings": False}),
    "gemma": ("gemma", "gemma", {}),
    "smollm3": ("smollm3", "smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}),
    "granite": ("granite", "granite", {}),
    "gemma2": ("gemma2", "gemma2", gemma(3, 2)),
    "gemma2 without caps": (
        "gemma2",
        "gemma2",
        gemma(3, 2, attn_logit_softcapping=None, final_logit_softcapping=None),
    ),
    "gemma2 that never slides": ("gemma2", "gemma2", gemma(3, 2, layer_types=["full_attention"] * 3)),
    "gemma3": ("gemma3_text", "gemma3", gemma(7, 6)),
    "gemma3 as large as 27B": ("gemma3_text", "gemma3", gemma(62, 6, **SMALL)),
    "phi3": ("phi3", "phi3", SQUARE | WHOLE),
    "phi3 that turns half of a head": ("phi3", "phi3", SQUARE),
    "phi3 with fewer heads": ("phi3", "deci", WHOLE),
    "phi3 with fewer heads of which half turns": ("phi3", "deci", {}),
    "mixtral": ("mixtral", "llama", {"sliding_window": None}),
    "qwen3_moe": ("qwen3_moe", "qwen3moe", {"mlp_only_layers": []}),
    "llama with biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    "granite with biases": ("granite", "granite", {"attention_bias": True, "mlp_bias": True}),
    "ministral3": ("ministral3", "llama", LONGER),
    "ernie4_5 with biases": ("ernie4_5", "llama", {}),
    "helium": ("helium", "llama", SQUARE),
    "seed_oss": ("seed_oss", "llama", {"mlp_bias": True}),
    "olmo2": ("olmo2", "olmo2", SQUARE | {"attention_bias": False}),
    "exaone4": ("exaone4", "exaone4", SQUARE | STILL | LLAMA3),
    "glm4": ("glm4", "glm4", {}),
    "glm4 that turns whole heads": ("glm4", "glm4", WHOLE),
    "arcee": ("arcee", "arcee", {**LLAMA3, "mlp_bias": False, "hidden_size": 128}),
}
BIASES = {"attention_bias": True, "mlp_bias": True}
UNEQUAL = {
    "mistral": ("mistral", "deci", MIXED, {"sliding_window": None}),
    "qwen2": ("qwen2", "deci", MIXED, {}),
    "qwen3": ("qwen3", "openelm", MIXED, {}),
    "granite": ("granite", "deci", MIXED, {"tie_word_embeddings": True}),
    "llama": ("llama", "deci", MIXED, BIASES | LLAMA3),
    "phi3": ("phi3", "deci", MIXED, WHOLE),
    "phi3 that turns half of a head": ("phi3", "deci", MIXED, {}),
    "helium": ("helium", "deci", {1: (0, 0, 40)}, SQUARE),
    "ernie4_5": ("ernie4_5", "deci", MIXED, {}),
    "seed_oss": ("seed_oss", "deci", MIXED, {}),
    "ministral3": ("ministral3", "deci", MIXED, LONGER),
}
CONTINUED = ("llama", "mistral", "qwen2", "qwen2 with fewer heads", "qwen3", "granite", "phi3", "gemma", "smollm3")
CONTINUED += ("gemma2", "gemma3", "mixtral", "qwen3_moe", "ernie4_5 with biases", "olmo2", "exaone4", "glm4", "arcee")
"""Where greedy tokens are compared too."""


def test_every_family_is_compared_with_the_library_or_refused():
    """What the documentation says of GGUF comes from these constants."""
    assert {model_type for model_type, *_ in EQUAL.values()} == set(STOCK)
    assert {model_type for model_type, *_ in UNEQUAL.values()} == {*LIKE_LLAMA, *TIED}
    assert set(families()) == {*STOCK, *UNKNOWN}
    assert not set(STOCK) & set(UNKNOWN)


@pytest.mark.parametrize("case", [*EQUAL, *(f"unequal {name}" for name in UNEQUAL)])
def test_layers_compute_what_they_do_in_transformers(tmp_path, case):
    name = case.removeprefix("unequal ")
    model_type, architecture, *rows, overrides = EQUAL[case] if name == case else UNEQUAL[name]
    folder = any_checkpoint(tmp_path / "model", model_type, rows[0] if rows else None, **overrides)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert report["details"]["architecture"] == architecture
    assert report["details"]["chat_template"] is True
    if rows:
        assert report["comparisons"][0]["left"] == "masked dense"
    else:
        assert report["notes"] == [] or case == "ministral3"
    # llama.cpp looks gelu up in a table of float16 numbers
    assert_checked_in_the_library(report, 2e-3 if "gemma" in case else 1e-5)
    if name in CONTINUED:
        assert_same_as_transformers(folder, tmp_path / "m.gguf", 1e-3 if "gemma" in case else 1e-4)


def test_where_queries_grow_the_file_ends(tmp_path):
    """Ministral 3 scales queries by their position, in steps of its original context."""
    folder = plain_checkpoint(tmp_path / "model", "ministral3")
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert any("its queries are scaled with their position from 16 tokens on" in note for note in report["notes"])
    assert report["comparisons"][-1]["tokens"] == 16


@pytest.mark.parametrize(
    ("model_type", "quantisation"), [("gemma2", "q8_0"), ("phi3", "q4_k_m"), ("mixtral", "q8_0"), ("mixtral", "q4_k_m")]
)
def test_quantised_families(tmp_path, model_type, quantisation):
    folder = plain_checkpoint(tmp_path / "model", model_type, **(gemma(3, 2) if model_type == "gemma2" else {}))
    report = exported(folder, tmp_path / "m.gguf", quantisation=quantisation)
    assert report["comparisons"][-1]["right"] == "the file in llama.cpp"
    types = report["details"]["tensor_types"]
    assert types["F32"] == {"gemma2": 13, "phi3": 8, "mixtral": 10}[model_type]  # norms, divisors and routers
    assert report["details"]["same_top_after_rounding"] > 0.5
    # A router whose input is rounded may choose another expert for a token or two.
    assert 0 < report["details"]["kl_of_rounding"] < (0.05 if quantisation == "q8_0" else 2)


@pytest.mark.parametrize("model_type", ["mistral", "phi3", "mixtral"])
def test_where_all_layers_slide_the_file_ends_at_the_window(tmp_path, model_type):
    """Up to there both compute the same, which is also as far as the check looks."""
    folder = plain_checkpoint(tmp_path / "model", model_type, sliding_window=100)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert any("slides over a window of 100 tokens" in note for note in report["notes"])
    assert report["comparisons"][-1]["tokens"] == 100
    assert_checked_in_the_library(report, 1e-5)
    keys = GgufFile(tmp_path / "m.gguf").keys
    assert keys[f"{report['details']['architecture']}.context_length"] == 100
