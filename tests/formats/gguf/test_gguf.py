"""GGUF files in the real llama.cpp: the same logits and the same greedy tokens as transformers."""

import pytest
import torch
from tests.tiny.llama_cpp import assert_same_as_transformers, exported
from tests.tiny.pruned import BESIDE, DELTA, GEMMA4, MIXED, Row, any_checkpoint, plain_checkpoint, pruned_checkpoint

from darwinlm.formats.gguf.file_sizes import predicted_sizes
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.recipe import load_recipe
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.errors import BudgetError, ExportError
from darwinlm.steps.budget.search_problem import problem_of

pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")

FULL = (4, 2, 96)
ODD: dict[str, tuple[dict[int, Row], str]] = {
    "a KV group gone": ({0: (2, 1, 96), 2: (2, 1, 64)}, ""),
    "one query head of each group gone": ({1: (2, 2, 96)}, ""),
    "MLPs of other widths": ({0: (4, 2, 32), 1: (4, 2, 64)}, ""),
    "a width that must be padded": ({1: (4, 2, 40)}, "block 1: padded from 4 heads and 40 channels to 4 and 64"),
    "no attention in a middle block": ({1: (0, 0, 96)}, ""),
    "no attention in the first block": ({0: (0, 0, 96)}, "block 0: padded from 0 heads and 96 channels to 1 and 96"),
    "no MLP in a middle block": ({1: (4, 2, 0)}, "block 1: padded from 4 heads and 0 channels to 4 and 32"),
    "no MLP in the last block": ({2: (4, 2, 0)}, "block 2: padded from 4 heads and 0 channels to 4 and 32"),
    "nothing in a middle block": ({1: (0, 0, 0), 2: (2, 1, 32)}, "omitted as empty: blocks 1"),
    "nothing in the first block": ({0: (0, 0, 0), 2: (4, 2, 64)}, "omitted as empty: blocks 0"),
    "nothing in the last block": ({1: (4, 2, 64), 2: (0, 0, 0)}, "omitted as empty: blocks 2"),
    "no attention in the last block": ({2: (0, 0, 32)}, ""),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_layers_of_a_llama(tmp_path, case):
    rows, note = ODD[case]
    folder = pruned_checkpoint(tmp_path / "model", "llama", rows)
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    equal = len({rows.get(block, FULL) for block in range(3)} - {(0, 0, 0)}) == 1
    assert report["details"]["architecture"] == ("llama" if equal else "deci")
    assert any(text.startswith(note) for text in report["notes"]) if note else report["notes"] == []
    assert_same_as_transformers(folder, tmp_path / "m.gguf", 1e-4)


def test_a_model_without_blocks_is_refused(tmp_path):
    folder = pruned_checkpoint(tmp_path / "model", "llama", dict.fromkeys(range(3), (0, 0, 0)))
    with pytest.raises(ExportError, match="supports this llama model: all blocks are empty"):
        export_model(folder, tmp_path / "m.gguf")


def test_query_heads_that_share_unevenly_get_kv_heads_of_their_own(tmp_path):
    folder = pruned_checkpoint(tmp_path / "model", "llama", {1: (3, 2, 96)}, attention="query_head")
    report = exported(folder, tmp_path / "m.gguf", quantisation="f32")
    assert report["notes"] == ["block 1: every query head gets a copy of its KV head (2 → 3 KV heads)"]
    assert_same_as_transformers(folder, tmp_path / "m.gguf", 1e-4)


def test_a_bound_on_the_file_counts_these_kv_heads(tmp_path):
    sizes = {"intermediate_size": 100}  # which a file fills up to 128
    small = pruned_checkpoint(tmp_path / "small", "llama", {1: (3, 2, 64)}, attention="query_head", **sizes)
    settings = ("budget.file=150kB", "units.attention=query_head", "units.quantisation=q8_0")
    recipe = load_recipe(None, settings, {"model": str(plain_checkpoint(tmp_path / "model", "llama", **sizes))})
    problem, _ = problem_of(recipe, Checkpoint.open(tmp_path / "model"), None)
    without = plain_checkpoint(tmp_path / "without", "vaultgemma", num_hidden_layers=4)
    with pytest.raises(BudgetError, match=r"budget\.file: llama\.cpp doesn't run vaultgemma models like this one"):
        problem_of(load_recipe(recipe, (), {"model": str(without)}), Checkpoint.open(without), None)
    dense = problem.space.dense
    cost = problem.cost.of((*dense[:2], 3, 2, *dense[4:]))
    assert cost == pytest.approx(predicted_sizes(Checkpoint.open(small))["q8_0"], abs=128)


@pytest.mark.parametrize("quantisation", ["f16", "bf16", "q8_0", "q4_0", "q4_k_m", "q6_k"])
def test_quantised_files(tmp_path, quantisation):
    folder = pruned_checkpoint(tmp_path / "model", "llama", {1: (2, 1, 64)}, dtype=torch.bfloat16)
    report = exported(folder, tmp_path / "m.gguf", quantisation=quantisation.upper())  # as llama.cpp writes them
    details = report["details"]
    assert details["quantisation"] == quantisation
    assert [row["right"] for row in report["comparisons"]][-1] == f"its {quantisation} file in llama.cpp"
    assert details["tokenizer_agrees"] is True
    limits = {"f16": 5e-3, "bf16": 0.05, "q8_0": 0.1, "q6_k": 0.3}
    assert 0 < report["comparisons"][-1]["relative"] < limits.get(quantisation, 1)
    if quantisation.endswith("_m"):
        assert any("multiples of 256" in note for note in report["notes"])


def test_a_file_with_parameters_of_the_activation_in_its_keys_has_its_predicted_size(tmp_path):
    """They are numbers without a dimension."""
    folder = plain_checkpoint(tmp_path / "model", "apertus")
    export_model(folder, tmp_path / "m.gguf", quantisation="q8_0", unchecked=True)
    predicted = predicted_sizes(Checkpoint.open(folder))["q8_0"]
    assert predicted == pytest.approx((tmp_path / "m.gguf").stat().st_size, abs=2048)


OSS = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "swiglu_limit": 7.0}
OTHERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GROUPED = {"num_key_value_heads": 4, "attention_bias": False, "head_dim": 8}


@pytest.mark.parametrize(
    ("model_type", "rows", "overrides", "reason"),
    [
        ("qwen3", MIXED, {"tie_word_embeddings": False}, "its layers differ, and the only architecture per layer with"),
        ("gemma", MIXED, {}, "its layers differ, and no architecture with sizes per layer"),
        ("llama", MIXED, {"hidden_act": "relu"}, "its MLPs use relu"),
        ("mixtral", {0: (4, 2, 64, 2)}, {}, r"mixtures of experts differ.* Prune with --for gguf"),
        ("mixtral", {1: (4, 2, 40)}, {}, "its mixtures of experts differ"),
        ("gemma4_text_experts", {1: (4, 1, 0)}, GEMMA4 | BESIDE, "its mixtures of experts differ"),
        ("deepseek_v3", {2: (4, 4, 0)}, GROUPED, "its mixtures of experts differ"),
        ("exaone4", {}, {"layer_types": ["sliding_attention"] * 3}, "some of its layers have a sliding window"),
        ("olmo3", {}, {"layer_types": ["full_attention"] * 3}, "every 4. layer has no window"),
        ("nemotron", {}, {}, "its heads don't fill the hidden size"),
        ("gpt_oss", {}, OSS | {"swiglu_limit": 2.0}, "the constants of its activation are 1.702 and 7.0"),
        ("deepseek_v2", {}, {"topk_method": "group_limited_greedy", "n_group": 1, "topk_group": 1}, "by the best two"),
        ("deepseek_v3", {}, {"rope_interleave": False, "head_dim": 8}, "pairs halves of a head"),
        ("qwen3_5_text", {1: (4, 2, 40)}, DELTA, "its layers differ, and in llama.cpp all blocks of this family have"),
        ("vaultgemma", {}, {"layer_types": ["full_attention"] * 3}, "llama.cpp has no architecture for this family"),
        ("gemma3_text", {}, {"layer_types": ["full_attention"] * 3}, "every 6. layer has no window"),
        ("gemma2", {}, {"layer_types": ["sliding_attention"] * 3}, "every 2. layer has no window"),
        ("gemma2", {1: (0, 0, 0)}, OTHERS, "whole blocks were removed"),
        ("gemma3_text", {}, {"layer_types": ["sliding_attention"] * 3, "final_logit_softcapping": 30.0}, "it caps"),
        ("qwen3_moe", {}, {"mlp_only_layers": [1]}, "some of its MLPs aren't mixtures of experts"),
        (
            "qwen3_moe",
            {},
            {"mlp_only_layers": [], "norm_topk_prob": False},
            r"in llama.cpp they do\. transformers runs it",
        ),
        ("qwen2_moe", None, {"hidden_size": 128, "mlp_only_layers": []}, r"q8_0 doesn't fit .*down_shexp.*\(24\)"),
        ("llama", {1: (2, 1, 64)}, {"hidden_size": 48}, r"q8_0 doesn't fit .*\(48\) is not a multiple"),
    ],
)
def test_models_that_no_architecture_holds(tmp_path, model_type, rows, overrides, reason):
    folder = any_checkpoint(tmp_path / "model", model_type, rows, **overrides)
    more = {"quantisation": "q8_0"} if "q8_0" in reason else {}
    with pytest.raises(ExportError, match=reason):
        export_model(folder, tmp_path / "m.gguf", **more)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
