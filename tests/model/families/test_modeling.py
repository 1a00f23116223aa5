"""Models whose layers differ: equal to the masked dense model, saved and loaded, in every variant of their families."""

import copy
import json

import pytest
import torch
from tests.tiny.cutting import cut_and_masked, logits, near, tokens
from tests.tiny.models import tiny_config
from transformers import AutoModel, AutoModelForCausalLM

from darwinlm.model.families.family import families, family_of
from darwinlm.model.families.modeling_darwinlm import auto_map, modeling_source
from darwinlm.model.families.pruned import pruned_classes, pruned_config
from darwinlm.model.families.shapes import head_dim


def test_equals_the_masked_dense_model(case):
    pruned, masked = cut_and_masked(*case)
    assert type(pruned) is not type(masked)
    near(logits(pruned, tokens()), logits(masked, tokens()), pruned)


def test_save_and_load(pruned, tmp_path):
    pruned.save_pretrained(tmp_path)
    ids = tokens()
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    again = copy.deepcopy(again)  # rounding depends on the alignment of weights, which mapped files don't keep
    assert type(again) is type(pruned)
    assert again._no_split_modules == {type(block).__name__ for block in again.model.layers}, "others would be missed"
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again, ids), logits(pruned, ids))
    decoder = copy.deepcopy(AutoModel.from_pretrained(tmp_path))
    assert type(decoder) is type(pruned.model)
    assert torch.equal(decoder(ids).last_hidden_state, pruned.model(ids).last_hidden_state)
    stored = json.loads((tmp_path / "config.json").read_text())
    definition = family_of(pruned.config).definition()
    assert stored["auto_map"] == auto_map(definition.prefix)
    name = type(pruned.config).attribute_map.get("head_dim", "head_dim")
    assert stored[name] == head_dim(pruned.config)
    assert (tmp_path / "modeling_darwinlm.py").read_text() == modeling_source(definition)


def rope(kind, theta=1e4, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


def longrope(*factors, turned):
    short, long = [factor for factor, _ in factors], [factor for _, factor in factors]
    settings = rope("longrope", short_factor=short, long_factor=long, partial_rotary_factor=turned, factor=4.0)
    return {"rope_parameters": settings, "original_max_position_embeddings": 64}


def both(full, sliding):
    return {"rope_parameters": {"full_attention": full, "sliding_attention": sliding}}


FACTORS = [(1.0, 2.0), (1.1, 2.5), (1.2, 3.0), (1.3, 4.0)]
TIED = {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", TIED),
        ("seed_oss", TIED | {"mlp_bias": True, "attention_out_bias": True}),
        ("exaone4", TIED | {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
        ("hunyuan_v1_dense", {"rope_parameters": rope("dynamic", alpha=1000.0, factor=1.0)}),
        ("olmo3", both(rope("yarn", factor=8.0, original_max_position_embeddings=32), rope("default"))),
        ("gemma3_text", both(rope("linear", 1e6, factor=8.0), rope("default"))),
        # as Phi-4-mini: tied embeddings, and factors for the part of a head that turns
        ("phi3", TIED | longrope(*FACTORS[:3], turned=0.75)),
        # factors for each half of a head size that mustn't change with the number of heads
        ("phi3", longrope(*FACTORS, turned=1.0)),
        ("qwen3_moe", TIED | {"attention_bias": True, "mlp_only_layers": []}),
        # as 31B: values of full attention are its keys, and nothing is shared or added per layer
        (
            "gemma4_text",
            {
                "attention_k_eq_v": True,
                "num_kv_shared_layers": 0,
                "hidden_size_per_layer_input": 0,
                "use_double_wide_mlp": False,
            },
        ),
    ],
)
def test_variants_of_families(model_type, overrides, tmp_path):
    pruned, masked = cut_and_masked(model_type, "no attention first", **overrides)
    ids = tokens()
    near(logits(pruned, ids), logits(masked, ids), pruned)
    pruned.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, ids), logits(pruned, ids))
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    assert tied == masked.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_attention_heads": 5}, "5 query heads can't be shared evenly by 3"),
        ({"skip": ["attn"]}, "skips \\['attn'\\]"),
    ],
)
def test_impossible_layers_are_refused(overrides, message):
    with pytest.raises(Exception, match=message):
        pruned_config(pruned_classes(families()["llama"])[0], tiny_config("llama"), {1: overrides})
