"""Descriptions of model families: what a file may say, and what is said of a family that has none."""

from types import SimpleNamespace

import pytest
import yaml
from pydantic import ValidationError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from darwinlm.families.family import Family, families, family_of
from darwinlm.families.pruned import pruned_classes, pruned_config
from darwinlm.runtime.errors import FamilyError

DESCRIPTION = """
title: Otters
model_type: otter
attention: {name: attn, query: [q], key_value: [k, v], output: o, norms: [before, after], post_norm: after}
mlp: {name: mlp, inputs: [up], output: down, norms: [second]}
"""


def described(**changes: object) -> Family:
    return Family.model_validate(yaml.safe_load(DESCRIPTION) | changes)


def test_an_unknown_family_is_told_which_are_known():
    with pytest.raises(FamilyError) as caught:
        family_of(SimpleNamespace(model_type="otter"))
    message = str(caught.value)
    assert "'otter' isn't known" in message
    assert "darwinlm/families/data" in message
    for family in families().values():
        assert family.model_type in message


def test_models_of_one_type_with_and_without_experts_are_two_families():
    experts = {"num_experts": 4, "top_k_experts": 2}
    for switch, key in ((False, "gemma4_text"), (True, "gemma4_text_experts")):
        family = family_of(CONFIG_MAPPING["gemma4_text"](enable_moe_block=switch, **experts))
        assert family.key == key
        assert family.class_names == families()["gemma4_text"].class_names, "a process has one class for a model type"
    rows = {0: {"enable_moe_block": False}}
    config = pruned_config(pruned_classes(*family.class_names)[0], config_of(experts), rows)
    assert family_of(config).key == "gemma4_text_experts"
    rows = {block: {"enable_moe_block": False} for block in range(2)}
    config = pruned_config(type(config), config_of(experts), rows)
    assert family_of(config).key == "gemma4_text"


def config_of(experts: dict[str, int]) -> PreTrainedConfig:
    return CONFIG_MAPPING["gemma4_text"](enable_moe_block=True, num_hidden_layers=2, **experts)


def test_keys_and_values_that_are_shared_keep_their_attentions():
    kinds = ["sliding_attention", "full_attention"] * 3
    config = CONFIG_MAPPING["gemma4_text"](num_hidden_layers=6, layer_types=kinds, num_kv_shared_layers=3)
    family = family_of(config)
    assert family.attention.sources(config) == {3: 1, 4: 2, 5: 1}
    assert [block for block in range(6) if "attention" in family.cut_kinds(config, block)] == [0]
    assert family.linked(config)
    config = CONFIG_MAPPING["gemma4_text"](hidden_size_per_layer_input=0)
    assert not family.attention.sources(config)
    assert not family.linked(config)


SANDWICH = {"name": "mlp", "inputs": ["up"], "output": "down", "norms": ["second", "third"], "post_norm": "third"}


def test_a_post_norm_goes_with_its_sub_layer():
    assert described(mlp=SANDWICH).mlp.post_norm == "third"
    assert described(mlp=SANDWICH).mlp.input_norm == described().mlp.input_norm == "second"
    assert described(mlp=SANDWICH | {"norms": ["third"]}).mlp.input_norm is None, "it reads the residual stream itself"
    for wrong in ("second", "fourth"):
        with pytest.raises(ValidationError, match=f"post_norm is {wrong}, which must be the last of norms"):
            described(mlp=SANDWICH | {"post_norm": wrong})
    with pytest.raises(ValidationError, match="post_normm"):
        described(post_normm="x")
