"""Descriptions of model families, and models with more than attention and MLPs: what is kept, left out and refused."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from rich.console import Console
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import edit_weights
from tests.tiny.stages import run_stages
from transformers import CONFIG_MAPPING, PreTrainedConfig

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import FURTHER, Checkpoint
from darwinlm.model.families.family import Family, families, family_of
from darwinlm.model.families.pruned import pruned_classes, pruned_config
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.units.space import kept_whole, space_of
from darwinlm.recipe import load_recipe
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import CheckpointError, FamilyError

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
        assert family.definition() == families()["gemma4_text"].definition(), "a process has one class for a model type"
    rows = {0: {"enable_moe_block": False}}
    config = pruned_config(pruned_classes(family)[0], config_of(experts), rows)
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
    with pytest.raises(ValidationError, match="post_normm"):
        described(post_normm="x")


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("llama", ""),
        ("mixtral", "attention of 4 blocks is kept"),
        ("qwen3_5_text", "linear attention of 2 blocks is kept"),
        ("qwen3_5_moe_text", "attention of 2 blocks and linear attention of 2 blocks are kept"),
        ("gemma4_text", "attention of 2 blocks and per-layer input of 4 blocks are kept"),
        ("lfm2", "short convolution of 2 blocks is kept"),
        ("granitemoehybrid", "state space of 2 blocks is kept"),
        ("gemma4_text_experts", "attention of 4 blocks and MLP beside experts of 4 blocks are kept"),
        (
            "granitemoehybrid_experts",
            "attention of 2 blocks, MLP beside experts of 4 blocks and state space of 2 blocks are kept",
        ),
    ],
)
def test_what_is_never_cut_is_named(tiny_folder: Callable[[str], Path], model_type: str, words: str):
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    recipe = load_recipe(None, ("units.mlp_multiple=8",), {"model": "x", "budget.keep": "50%"})
    space = space_of(recipe.units, checkpoint, module_shapes(checkpoint))
    assert kept_whole(space, checkpoint.family) == words


@pytest.mark.parametrize(
    ("model_type", "names", "words"),
    [
        ("qwen3_next", ("mtp.fc.weight", "mtp.layers.0.mlp.gate.weight"), "multi-token prediction (2 tensors)"),
        ("deepseek_v3", ("model.layers.4.eh_proj.weight",), "multi-token prediction (1 tensor) is left out"),
        ("llama", (), ""),
    ],
)
def test_multi_token_prediction_is_left_out_and_named(
    tmp_path: Path, make_run: Callable[..., Any], model_type: str, names: tuple[str, ...], words: str
):
    folder = tiny_checkpoint(tmp_path / "model", model_type)
    edit_weights(folder, lambda tensors: tensors.update({name: torch.zeros(2, 2) for name in names}))
    checkpoint = Checkpoint.open(folder)
    assert set(checkpoint.further) == set(names)
    assert not set(names) & set(checkpoint.tensors)
    console = Console(file=io.StringIO(), width=200, record=True)
    run_stages(make_run(folder, tmp_path / "out", reporter=Reporter(console)), "plan")
    assert words in (said := console.export_text())
    assert words or "multi-token" not in said
    save_model(checkpoint.load(torch.float32), tmp_path / "saved")
    assert not any(read_json(tmp_path / "saved" / "config.json").get(name) for name in FURTHER)


def test_a_block_too_many_that_predicts_nothing_is_refused(tmp_path: Path):
    folder = tiny_checkpoint(tmp_path / "model", "llama")
    edit_weights(folder, lambda tensors: tensors.update({"model.layers.4.mlp.down_proj.weight": torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError, match=r"holds the tensor model\.layers\.4\.mlp\.down_proj"):
        Checkpoint.open(folder)
