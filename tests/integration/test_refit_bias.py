"""A run whose refit fits biases: they are in the budget, in the saved model, and in what the report counts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from darwinlm.artifact import read_json
from darwinlm.errors import RecipeError
from darwinlm.pipeline import run_stages
from darwinlm.planning.model import Sizes

BIASED = ("o_proj.bias", "down_proj.bias")
SETTINGS = ("refit.bias=true", "refit.ridges=[1e-4, 0.03]")


def test_biases_count_in_the_budget_and_are_saved(tiny_llama, make_run, tmp_path):
    out = tmp_path / "out"
    run = make_run(tiny_llama, out, *SETTINGS)
    summary = run_stages(run, "report").report
    dense = sum(t.numel() for name, t in load_file(tiny_llama / "model.safetensors").items() if ".layers." in name)
    saved = load_file(out / "model" / "model.safetensors")
    inside = {name: tensor for name, tensor in saved.items() if ".layers." in name}
    kept = sum(tensor.numel() for tensor in inside.values())
    budget = summary.budget
    assert (budget.dense_block_params, budget.block_params, budget.used) == (dense, kept, kept)
    assert budget.upper == int(run.recipe.budget.keep * dense) >= kept
    biases = {name: tensor for name, tensor in inside.items() if name.endswith("bias")}
    weights = [name for name in inside if name.endswith("proj.weight")]
    assert len(biases) == len(weights)
    fitted = {f"{choice['block']} {choice['kind']}" for choice in read_json(out / "stages/refit/choices.json")
              if choice["ridge"] is not None}  # fmt: skip
    assert fitted
    nonzero = {name for name, tensor in biases.items() if bool(tensor.any())}
    assert len(nonzero) == len(fitted)
    assert all(name.endswith(BIASED) for name in nonzero)
    config = read_json(out / "model" / "config.json")
    assert config["attention_bias"] is config["mlp_bias"] is True
    again = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    name = sorted(nonzero)[0]
    assert torch.equal(dict(again.named_parameters())[name], saved[name].float())
    assert summary.models["refit"].kl < summary.models["stitched"].kl
    sizes = Sizes(run.checkpoint, run.recipe)
    assert (sizes.blocks, sizes.budget.limit) == (dense, budget.upper)
    assert sizes.cost.dense == dense


def test_a_family_without_such_biases_is_refused_before_anything_is_measured(tiny_folder, make_run, tmp_path):
    run = make_run(tiny_folder("qwen2"), tmp_path / "out", "refit.bias=true")
    with pytest.raises(RecipeError, match=r"refit\.bias: .*qwen2 can't give attention and mlp .*refit\.bias=false"):
        run_stages(run, "database")
    assert not (tmp_path / "out" / "stages" / "database").exists()
