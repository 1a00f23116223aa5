"""Every family through the whole pipeline, on a tiny random model: one suite for all.

What a smaller model must compute is found on the dense one with zeros in it; what transformers does with such models is
in test_modeling.py.
"""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.masked import assert_equal_logits, logits, masked
from tests.tiny.models import FAMILIES
from tests.tiny.stages import run_stages
from tests.tiny.whole import Whole
from transformers import AutoModelForCausalLM

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.divergence import DenseDistribution
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import class_prefix, families
from darwinlm.model.surgery.smaller_model import block_parameters
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.stitch.stitch import stitch

AGAIN = ("phi3", "gemma3_text", "qwen3_5_moe_text", "lfm2", "granitemoehybrid", "deepseek_v3", "gpt_oss", "gemma4_text")
"""Fused and normed projections, mixtures, hybrids, and compressed, gated and shared attention."""


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path], make_run, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("family") / "out"
    keep = "50%" if request.param == "qwen3_5_moe_text" else "60%"  # at 60 %, its layers stay equal
    run = make_run(tiny_folder(request.param), folder, keep=keep)
    return Whole(run, run_stages(run, "export"))


def test_every_described_family_is_tested():
    assert set(FAMILIES) == {name for name, family in families().items() if not family.bidirectional}


def test_any_allocation_is_the_masked_dense_model_and_weighs_what_was_predicted(whole):
    tokens = whole.text["evaluation"].tokens[:2]
    for allocation in whole.random_allocations(3):
        small = stitch(whole.reader, allocation)
        assert_equal_logits(small, masked(whole.reader, allocation), tokens)
        assert block_parameters(small, whole.checkpoint.family.layers) == whole.plan.space.params(allocation)


def test_the_search_sees_what_is_stitched(whole):
    """Above all where a sub-layer is gone between a norm before and one after it, which then gets zeros."""
    tokens = whole.text["fitness"].tokens
    placed = whole.placed()
    fitness = Fitness(placed, tokens, batch_tokens=96)
    dense = DenseDistribution(logits(whole.checkpoint.load(torch.float32), tokens).flatten(0, 1))
    for allocation in (*whole.random_allocations(2, seed=2), tuple(0 for _ in whole.plan.space.modules)):
        expected = dense.kl(logits(stitch(whole.reader, allocation), tokens).flatten(0, 1)).double().mean()
        assert fitness.kl(allocation, tokens.numel()) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


def stored_names(folder: Path) -> set[str]:
    return set(load_file(folder / "model.safetensors"))


def test_the_dense_allocation_is_the_dense_model(whole, tmp_path):
    """And it is stored as that one is: experts one by one, if they are."""
    tokens = whole.text["evaluation"].tokens[:2]
    small = stitch(whole.reader, whole.plan.space.dense)
    assert torch.equal(logits(small, tokens), logits(whole.checkpoint.load(torch.float32), tokens))
    assert small.config.model_type == whole.checkpoint.config.model_type
    save_model(small, tmp_path / "dense")
    assert stored_names(tmp_path / "dense") == stored_names(whole.checkpoint.folder)


def test_layers_that_are_cut_alike_make_the_familys_own_class(whole):
    """Its MLPs are smaller; mixtures lose an expert, or half of every expert's channels."""
    allocation = whole.cut_alike()
    small = stitch(whole.reader, allocation)
    assert type(small).__name__ == f"{class_prefix(whole.checkpoint.family.model_type)}ForCausalLM"
    assert block_parameters(small, whole.checkpoint.family.layers) == whole.plan.space.params(allocation)
    assert whole.plan.space.params(allocation) < whole.plan.space.params(whole.plan.space.dense)
    assert_equal_logits(small, masked(whole.reader, allocation), whole.text["evaluation"].tokens[:2])


def test_what_was_saved_is_what_was_searched(whole):
    folder = whole.run.folder / "model"
    tokens = whole.text["evaluation"].tokens[:2]
    # Copies are aligned alike, on which rounding depends.
    model = copy.deepcopy(AutoModelForCausalLM.from_pretrained(folder))
    expected = copy.deepcopy(whole.stitch.checkpoint.load(torch.float32))
    expected.load_state_dict(whole.refitted, strict=False)
    assert torch.equal(logits(model, tokens), logits(expected, tokens))
    counted = block_parameters(model, whole.checkpoint.family.layers)
    assert counted == whole.plan.space.params(whole.search.allocation)
    assert counted <= whole.plan.budget.upper
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    assert model_type == f"darwinlm_{whole.checkpoint.family.model_type}"
    again = Checkpoint.open(folder)
    assert set(again.stored.shards) == set(again.tensors) == stored_names(folder), "as it is held"


@pytest.mark.parametrize("whole", AGAIN, indirect=True, scope="module")
def test_a_pruned_model_is_pruned_again(whole, make_run, tmp_path):
    """Layers that differ, sub-layers that are gone, and the same answers."""
    run = make_run(whole.run.folder / "model", tmp_path / "out", keep="75%")
    second = run_stages(run, "stitch")
    before = whole.plan.space.params(whole.search.allocation)
    assert second.plan.space.params(second.plan.space.dense) == before
    small = second.stitch.checkpoint.load(torch.float32)
    reference = masked(second.database.reader, second.search.allocation)
    assert_equal_logits(small, reference, second.text["evaluation"].tokens[:2])
    assert block_parameters(small, whole.checkpoint.family.layers) <= 0.75 * before
