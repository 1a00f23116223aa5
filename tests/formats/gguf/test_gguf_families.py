"""Families with norms after sub-layers, capped scores, windows, fused projections or experts, in the real llama.cpp."""

import pytest
import torch
from tests.tiny.llama_cpp import LLAMA3, assert_checked_in_the_library, assert_same_as_transformers, exported
from tests.tiny.models import ENCODERS, FAMILIES
from tests.tiny.pruned import BESIDE, DELTA, GEMMA4, MIXED, SQUARE, any_checkpoint, plain_checkpoint, pruned_checkpoint
from tests.tiny.stages import run_stages

from darwinlm.formats.gguf.file_sizes import predicted_sizes
from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import families

pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")

STILL = {"sliding_window": None, "layer_types": ["full_attention"] * 3}
LONGER = {"rope_parameters": FAMILIES["ministral3"]["rope_parameters"] | {"original_max_position_embeddings": 256}}
WHOLE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}

ALL = {name: family.gguf for name, family in families().items()}
STOCK = {name: each for name, each in ALL.items() if each is not None}

MAMBA = {"num_hidden_layers": 4, "mamba_n_heads": 4, "mamba_d_head": 32}
WIDTH = {"block_auto_adjust_ff_dim": False}
E2B = {"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 320}
PLAIN_GEMMA4 = {
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "use_double_wide_mlp": False,
}
YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "truncate": False}
YARN["original_max_position_embeddings"] = 64
OSS = {"num_hidden_layers": 4, "sliding_window": 16, "swiglu_limit": 7.0, "intermediate_size": 64}
LATENT = {"num_key_value_heads": 4, "moe_intermediate_size": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 32}
QUERIES = {"q_lora_rank": 32}
DEEPSEEK3 = {**LATENT, **QUERIES, "attention_bias": False, "head_dim": 8}
LITE = {"num_hidden_layers": 27, "rope_parameters": YARN | {"truncate": True, "mscale": 0.707, "mscale_all_dim": 0.707}}
MSCALE = {"rope_parameters": YARN | {"truncate": True, "mscale": 1.0, "mscale_all_dim": 0.8}}
ALPHA = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0}}
OLMO3 = {
    "num_hidden_layers": 4,
    "attention_bias": False,
    "sliding_window": 16,
    "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    "rope_parameters": {
        "full_attention": YARN | {"rope_theta": 500.0, "truncate": True},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}


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
    "smollm3": ("smollm3", "smollm3", {"num_hidden_layers": 5, "no_rope_layers": [1, 1, 1, 0, 1]}),
    "gemma2": ("gemma2", "gemma2", gemma(3, 2)),
    "gemma3": ("gemma3_text", "gemma3", gemma(7, 6)),
    "phi3": ("phi3", "phi3", SQUARE | WHOLE),
    "phi3 that turns half of a head": ("phi3", "phi3", SQUARE),
    "phi3 with fewer heads": ("phi3", "deci", WHOLE),
    "phi3 with fewer heads of which half turns": ("phi3", "deci", {}),
    "mixtral": ("mixtral", "llama", {"sliding_window": None}),
    "qwen3_moe": ("qwen3_moe", "qwen3moe", {"mlp_only_layers": []}),
    "llama with biases": ("llama", "llama", {"attention_bias": True, "mlp_bias": True}),
    "ministral3": ("ministral3", "llama", LONGER),
    "ernie4_5 with biases": ("ernie4_5", "llama", {}),
    "helium": ("helium", "llama", SQUARE),
    "seed_oss": ("seed_oss", "llama", {"mlp_bias": True}),
    "olmo2": ("olmo2", "olmo2", SQUARE | {"attention_bias": False}),
    "exaone4": ("exaone4", "exaone4", SQUARE | STILL | LLAMA3),
    "glm4": ("glm4", "glm4", {}),
    "glm4 that turns whole heads": ("glm4", "glm4", WHOLE),
    "arcee": ("arcee", "arcee", {**LLAMA3, "mlp_bias": False, "hidden_size": 128}),
    "gemma4 as E2B": ("gemma4_text", "gemma4", GEMMA4 | E2B),
    "gemma4 as 31B": ("gemma4_text", "gemma4", GEMMA4 | PLAIN_GEMMA4),
    "gemma4 as 26B-A4B": ("gemma4_text_experts", "gemma4", GEMMA4 | BESIDE),
    "qwen3_5": ("qwen3_5_text", "qwen35", DELTA),
    "qwen3_5_moe": ("qwen3_5_moe_text", "qwen35moe", DELTA | {"moe_intermediate_size": 64}),
    "granitemoehybrid": ("granitemoehybrid", "granitehybrid", MAMBA),
    "granitemoehybrid without rope": (
        "granitemoehybrid",
        "granitehybrid",
        MAMBA | {"position_embedding_type": "nope", "mamba_n_groups": 2},
    ),
    "granitemoehybrid_experts": ("granitemoehybrid_experts", "granitehybrid", MAMBA | {"intermediate_size": 64}),
    "qwen2_moe": ("qwen2_moe", "qwen2moe", SQUARE | {"mlp_only_layers": [], "moe_intermediate_size": 64}),
    "ernie4_5_moe": ("ernie4_5_moe", "ernie4_5-moe", {"use_bias": False, "moe_intermediate_size": 64}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", "hunyuan-moe", {"moe_topk": 2}),
    "glm4_moe": ("glm4_moe", "glm4moe", {"moe_intermediate_size": 64}),
    "glm4_moe_lite": ("glm4_moe_lite", "deepseek2", LATENT | {"n_routed_experts": 8, "n_group": 4, "topk_group": 2}),
    "olmoe": ("olmoe", "olmoe", SQUARE | {"num_key_value_heads": 4}),
    "qwen3_next_moe": ("qwen3_next", "qwen3next", DELTA | {"moe_intermediate_size": 64, "mlp_only_layers": []}),
    "lfm2": ("lfm2", "lfm2", SQUARE | {"layer_types": ["conv", "full_attention", "conv"], **WIDTH}),
    "gpt_oss": ("gpt_oss", "gpt-oss", OSS | {"rope_parameters": YARN | {"truncate": True}}),
    "gpt_oss with exact bounds": ("gpt_oss", "gpt-oss", OSS | {"rope_parameters": YARN}),
    "deepseek_v2 as Lite": ("deepseek_v2", "deepseek2", LATENT | LITE),
    "deepseek_v2 with compressed queries": (
        "deepseek_v2",
        "deepseek2",
        LATENT | QUERIES | {"rope_parameters": YARN | {"truncate": True}},
    ),
    "deepseek_v3": ("deepseek_v3", "deepseek2", DEEPSEEK3 | MSCALE),
    "nemotron": ("nemotron", "nemotron", SQUARE | {"mlp_bias": True}),
    "hunyuan": ("hunyuan_v1_dense", "hunyuan-dense", {}),
    "hunyuan with a larger base": ("hunyuan_v1_dense", "hunyuan-dense", ALPHA),
    "apertus": ("apertus", "apertus", LLAMA3),
    "olmo3": ("olmo3", "olmo2", SQUARE | OLMO3),
}
OTHERS = STOCK.keys() - {model_type for model_type, *_ in EQUAL.values()}
"""Families that are compared as `tests/tiny/models.py` has them."""
EQUAL |= {name: (name, STOCK[name].name, {}) for name in sorted(OTHERS)}
BIASES = {"attention_bias": True, "mlp_bias": True}
UNEQUAL = {
    "mistral": ("mistral", "deci", MIXED, {"sliding_window": None}),
    "granite": ("granite", "deci", MIXED, {"tie_word_embeddings": True}),
    "llama": ("llama", "deci", MIXED, BIASES | LLAMA3),
    "phi3": ("phi3", "deci", MIXED, WHOLE),
    "phi3 that turns half of a head": ("phi3", "deci", MIXED, {}),
    "helium": ("helium", "deci", {1: (0, 0, 40)}, SQUARE),
    "ministral3": ("ministral3", "deci", MIXED, LONGER),
}
SIMPLE = {name for name in STOCK if STOCK[name].unequal} - {model_type for model_type, *_ in UNEQUAL.values()}
UNEQUAL |= {name: (name, STOCK[name].unequal, MIXED, {}) for name in sorted(SIMPLE)}
CASES = {f"unequal {name}": case for name, case in UNEQUAL.items()}
CASES |= {
    name: (model_type, architecture, None, overrides) for name, (model_type, architecture, overrides) in EQUAL.items()
}
CONTINUED = {architecture: name for name, (_, architecture, *_) in reversed(CASES.items())}.values()
"""Where greedy tokens are compared too: the first case of each architecture."""


def test_families_with_sizes_by_layer_and_without_an_architecture():
    """What the documentation says of GGUF comes from these constants."""
    assert [name for name, stock in STOCK.items() if stock.per_layer] == ["gemma4_text", "gemma4_text_experts"]
    assert set(families()) - set(STOCK) == {"vaultgemma", *ENCODERS}


@pytest.mark.parametrize("case", CASES)
def test_layers_compute_what_they_do_in_transformers(tmp_path, case):
    model_type, architecture, rows, overrides = CASES[case]
    folder = any_checkpoint(tmp_path / "model", model_type, rows, **overrides)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert report["details"]["architecture"] == architecture
    assert report["details"]["chat_template"] is True
    if not rows:
        assert report["notes"] == [] or case in ("ministral3", "gpt_oss with exact bounds")
    # llama.cpp looks gelu up in a table of float16 numbers
    tolerance = 2e-3 if "gemma" in case else 1e-4
    assert_checked_in_the_library(report, tolerance)
    if case in CONTINUED:
        assert_same_as_transformers(folder, tmp_path / "m.gguf", 2e-3)


def test_bounds_of_yarn_that_llama_cpp_rounds(tmp_path):
    """The file is compared with the model of rounded bounds, which isn't the model."""
    model_type, _, overrides = EQUAL["gpt_oss with exact bounds"]
    folder = plain_checkpoint(tmp_path / "model", model_type, **overrides)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert_checked_in_the_library(report, 1e-4)
    assert any("rounds the bounds of the rope scaling (yarn)" in note for note in report["notes"])
    with EngineProcess("llama.cpp", tmp_path / "m.gguf", exact=True, context=128) as engine:
        found = torch.from_numpy(engine.logits(list(range(3, 103))))
    exact = Checkpoint.open(folder).load(torch.float32)(torch.arange(3, 103)[None]).logits[0]
    assert (found - exact).norm() > 1e-2 * exact.norm()


@pytest.mark.parametrize(("model_type", "groups", "overrides"), [("deepseek_v2", 4, LATENT), ("glm4_moe", 2, {})])
def test_narrow_experts_beside_wide_shared_ones(tmp_path, model_type, groups, overrides):
    """llama.cpp knows shared experts by a multiple of the others' width; zeros fill them up to the next one."""
    rows = {1: (4, groups, 40), 2: (4, groups, 40)}
    more = {"moe_intermediate_size": 96, "n_shared_experts": 1, "first_k_dense_replace": 1}
    folder = pruned_checkpoint(tmp_path / "model", model_type, rows, **overrides | more)
    report = exported(folder, tmp_path / "m.gguf", quantisation="q8_0")
    exact = report["comparisons"][-2]
    assert exact["right"] == "its f32 file in llama.cpp"
    assert exact["relative"] < 2e-5
    assert report["notes"][0] == "block 1: padded from 4 heads and 40 channels to 4 and 64"


def test_pruned_mixtures_are_exported(tmp_path, make_run):
    model_type, _, overrides = EQUAL["glm4_moe"]
    folder = plain_checkpoint(tmp_path / "dense", model_type, **overrides | {"moe_intermediate_size": 64})
    run_stages(
        make_run(folder, tmp_path / "run", "units.experts=both", "search.layers=equal", "refit.tokens=0"), "export"
    )
    small = tmp_path / "run" / "model"
    exported(small, tmp_path / "m.gguf", quantisation="f32")
    assert_same_as_transformers(small, tmp_path / "m.gguf", 2e-3)


@pytest.mark.parametrize("more", [{}, PLAIN_GEMMA4], ids=["as E2B", "as 31B"])
def test_unequal_layers_of_gemma4(tmp_path, more):
    """llama.cpp reads head counts and widths of each layer. Empty blocks stay, since something follows their MLP."""
    rows = {0: (0, 0, 40), 1: (4, 2, 0), 2: (4, 2, 192)} if not more else {0: (2, 1, 40), 1: (0, 0, 0), 2: (4, 1, 64)}
    folder = pruned_checkpoint(tmp_path / "model", "gemma4_text", rows, **GEMMA4 | E2B | more)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert report["comparisons"][0]["relative"] < 2e-3
    widths = read_header(tmp_path / "m.gguf").keys["gemma4.feed_forward_length"]
    assert widths == ([64, 32, 192] if not more else [64, 32, 64])
    assert_same_as_transformers(folder, tmp_path / "m.gguf", 1e-3)


@pytest.mark.parametrize(
    ("case", "quantisation"),
    [
        ("qwen3_5", "q4_k_m"),
        ("granitemoehybrid", "q8_0"),
        ("granitemoehybrid", "q4_k_m"),
        ("gpt_oss", "q4_k_m"),
        ("gemma4 as E2B", "q8_0"),
    ],
)
def test_quantised_hybrids(tmp_path, case, quantisation):
    """An unrounded file is checked before."""
    model_type, _, overrides = EQUAL[case]
    folder = plain_checkpoint(tmp_path / "model", model_type, **overrides)
    report = exported(folder, tmp_path / "m.gguf", quantisation=quantisation)
    exact, rounded = report["comparisons"]
    assert exact["relative"] < 2e-3 < rounded["relative"] < 1
    assert report["details"]["tensor_types"]["F32"] > 10
    if quantisation == "q8_0":
        assert report["bytes"] == pytest.approx(predicted_sizes(Checkpoint.open(folder))["q8_0"], abs=1024)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "m.gguf.export.json", "model"]


def test_where_queries_grow_the_file_ends(tmp_path):
    """Ministral 3 scales queries by their position, in steps of its original context."""
    folder = plain_checkpoint(tmp_path / "model", "ministral3")
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert any("its queries are scaled with their position from 16 tokens on" in note for note in report["notes"])
    assert report["comparisons"][-1]["tokens"] == 16


@pytest.mark.parametrize("model_type", ["mistral", "phi3"])
def test_where_all_layers_slide_the_file_ends_at_the_window(tmp_path, model_type):
    """Up to there both compute the same, which is also as far as the check looks."""
    folder = plain_checkpoint(tmp_path / "model", model_type, sliding_window=100)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert any("slides over a window of 100 tokens" in note for note in report["notes"])
    assert report["comparisons"][-1]["tokens"] == 100
    assert_checked_in_the_library(report, 1e-5)
    keys = read_header(tmp_path / "m.gguf").keys
    assert keys[f"{report['details']['architecture']}.context_length"] == 100
