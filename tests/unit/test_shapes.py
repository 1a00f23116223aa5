"""What a level weighs, predicted from shapes, against the parameters of models that were really built."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import tiny_checkpoint

from darwinlm.artifact import write_tensors
from darwinlm.database.factors import NestedFactors, nested_factors
from darwinlm.database.levels import module_levels
from darwinlm.database.store import DatabaseReader, block_file, experts_to_tensors, factors_to_tensors
from darwinlm.errors import BudgetError, CheckpointError, RecipeError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import head_dim, module_parameters, module_shapes
from darwinlm.recipe import Units
from darwinlm.search.space import SearchSpace, budget_of
from darwinlm.surgery.stitch import block_parameters, stitch

FAMILIES = {
    "llama": {"num_hidden_layers": 2},
    "llama with biases": {"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True},
    "llama multi-head": {"num_hidden_layers": 2, "num_key_value_heads": 6},
    "llama multi-query": {"num_hidden_layers": 2, "num_key_value_heads": 1},
    "llama of wide heads": {"num_hidden_layers": 2, "head_dim": 16},
    "qwen2": {"num_hidden_layers": 2},
    "qwen2 multi-head": {"num_hidden_layers": 2, "num_key_value_heads": 6},
    "qwen3": {"num_hidden_layers": 2},
    "qwen3 multi-query": {"num_hidden_layers": 2, "num_key_value_heads": 1},
    "gemma2": {"num_hidden_layers": 2, "layer_types": None},
    "gemma3_text": {"num_hidden_layers": 2, "layer_types": None},
    "granite with biases": {"num_hidden_layers": 2, "attention_bias": True, "mlp_bias": True},
    "phi3": {"num_hidden_layers": 2},
    "phi3 multi-query": {"num_hidden_layers": 2, "num_key_value_heads": 1},
    "phi3 of wide heads": {"num_hidden_layers": 2, "head_dim": 16},
    "mixtral": {"num_hidden_layers": 2},
    "qwen3_moe": {"num_hidden_layers": 2},
    "mistral": {"num_hidden_layers": 2},
    "mistral multi-head": {"num_hidden_layers": 2, "num_key_value_heads": 6},
}
UNITS = Units(attention="lattice", mlp_multiple=32)


@dataclass(frozen=True)
class Case:
    """A dense checkpoint, a database with made-up second moments, and the space over it."""

    checkpoint: Checkpoint
    database: DatabaseReader
    space: SearchSpace


def fabricated(checkpoint: Checkpoint, folder: Path, units: Units) -> DatabaseReader:
    """A database that needs no calibration: units go in the order of their index, last first, and H is the identity."""
    by_block: dict[int, dict] = {}
    for shape in module_shapes(checkpoint):
        W = checkpoint.read(checkpoint.block_prefix(shape.block))[shape.output].float()
        H = torch.eye(shape.width, dtype=torch.float64)
        if shape.experts:
            experts = [nested_factors(H, own, torch.arange(shape.width)) for own in W]
            by_block.setdefault(shape.block, {}).update(experts_to_tensors(experts))
            continue
        for heads in range(1, shape.heads + 1):
            columns = torch.arange(shape.width).view(shape.groups, shape.heads, -1)[:, :heads].reshape(-1)
            factors: NestedFactors = nested_factors(H, W, columns)
            by_block.setdefault(shape.block, {}).update(factors_to_tensors(shape, heads, factors))
    for block, tensors in by_block.items():
        write_tensors(folder / block_file(block), tensors)
    return DatabaseReader(folder, checkpoint, units)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp("shapes")
    folder = tiny_checkpoint(root / "model", request.param.split()[0], **FAMILIES[request.param])
    checkpoint = Checkpoint.open(folder)
    database = fabricated(checkpoint, root / "database", UNITS)
    return Case(checkpoint, database, SearchSpace(database.modules))


def parts_of(model, checkpoint: Checkpoint, block: int, kind: str) -> int:
    """Parameters of one module of a real model, its norms included."""
    layer, part = model.get_submodule(checkpoint.family.layers)[block], checkpoint.family.module(kind)
    return sum(
        parameter.numel()
        for name in (part.name, *part.norms)
        for parameter in getattr(layer, name).parameters()
        if hasattr(layer, name)
    )


def test_the_modules_are_those_of_the_model(case):
    shapes = module_shapes(case.checkpoint)
    config = case.checkpoint.config
    assert [(shape.block, shape.kind) for shape in shapes] == [
        (block, kind) for block in range(config.num_hidden_layers) for kind in ("attention", "mlp")
    ]
    for shape in shapes:
        if shape.kind == "mlp":
            width = config.moe_intermediate_size if shape.experts == 5 else config.intermediate_size
            assert (shape.groups, shape.heads, shape.head_dim, shape.width) == (1, 1, 1, width)
        else:
            assert shape.groups == config.num_key_value_heads
            assert shape.groups * shape.heads == config.num_attention_heads
            assert shape.head_dim == config.head_dim if getattr(config, "head_dim", None) else True
            assert shape.width == config.num_attention_heads * shape.head_dim


def test_the_dense_level_is_all_that_is_in_the_blocks(case):
    dense = case.checkpoint.load(case.checkpoint.dtype)
    assert case.space.params(case.space.dense) == block_parameters(dense, case.checkpoint.family.layers)
    for module in case.space.modules:
        assert module.levels[-1].params == parts_of(dense, case.checkpoint, module.block, module.kind)


def test_levels_grow_from_nothing(case):
    for module in case.space.modules:
        params = [level.params for level in module.levels]
        if module.kind == "attention" and case.checkpoint.family.attention.untouched:
            assert len(params) == 1
            continue
        assert params == sorted(params)
        assert params.count(0) == 1
        assert len({(level.groups, level.heads, level.width) for level in module.levels}) == len(module.levels)
        assert module.levels[0].width == 0


def test_every_level_weighs_what_is_built(case):
    """One model per level, in which every module of a kind is at the same one."""
    most = max(len(module.levels) for module in case.space.modules)
    for number in range(most):
        allocation = tuple(min(number, len(module.levels) - 1) for module in case.space.modules)
        model = stitch(case.database, allocation)
        for module, level in zip(case.space.modules, case.space.levels(allocation), strict=True):
            built = parts_of(model, case.checkpoint, module.block, module.kind)
            shape = case.database.shape(module.block, module.kind)
            family = case.checkpoint.family
            assert module_parameters(family, shape, level.groups, level.heads, level.width) == level.params
            assert built == level.params, f"{module.name} at {level}"


def test_whole_allocations_weigh_what_is_built(case):
    rng = random.Random(0)
    for _ in range(6):
        allocation = tuple(rng.randrange(len(module.levels)) for module in case.space.modules)
        model = stitch(case.database, allocation)
        assert block_parameters(model, case.checkpoint.family.layers) == case.space.params(allocation), allocation


def test_what_is_outside_the_blocks_stays(case):
    dense = case.checkpoint.load(case.checkpoint.dtype)
    smallest = stitch(case.database, tuple(0 for _ in case.space.modules))

    def outside(model):
        return sum(p.numel() for p in model.parameters()) - block_parameters(model, case.checkpoint.family.layers)

    assert outside(smallest) == outside(dense)
    untouched = [module for module in case.space.modules if len(module.levels) == 1]
    assert bool(untouched) == case.checkpoint.family.attention.untouched
    left = sum(parts_of(dense, case.checkpoint, module.block, module.kind) for module in untouched)
    assert block_parameters(smallest, case.checkpoint.family.layers) == left


def test_what_is_never_cut_bounds_the_budget(case):
    dense = case.space.params(case.space.dense)
    fixed = sum(module.levels[0].params for module in case.space.modules)
    if not case.checkpoint.family.attention.untouched:
        assert fixed == 0
        return
    assert budget_of(case.space, (fixed + 0.5) / dense, 0).upper == fixed
    with pytest.raises(BudgetError, match=f"less than the smallest model that the units allow: {fixed:,}"):
        budget_of(case.space, (fixed - 1) / dense, 0)


# ------------------------------------------------------------------------------------------------ single functions


@dataclass
class Config:
    hidden_size: int = 48
    num_attention_heads: int = 6
    head_dim: int | None = None


def test_the_head_size_is_the_one_that_is_stated():
    assert head_dim(Config()) == 8
    assert head_dim(Config(head_dim=20)) == 20


def test_query_heads_that_do_not_divide_by_the_groups(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    names = checkpoint.skeleton().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in names.items()}
    for name in ("k_proj", "v_proj"):
        shapes[f"model.layers.1.self_attn.{name}.weight"] = (32, 48)
    with pytest.raises(CheckpointError, match="block 1: 6 query heads don't divide by 4 KV heads"):
        module_shapes(checkpoint, shapes)


def test_units_decide_which_levels_there_are(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    attention, mlp = module_shapes(checkpoint)[:2]
    by_group = module_levels(checkpoint.family, attention, Units(attention="kv_group"))
    assert [(level.groups, level.heads) for level in by_group.levels] == [(0, 0), (1, 2), (2, 2), (3, 2)]
    lattice = module_levels(checkpoint.family, attention, Units(attention="lattice"))
    assert {(level.groups, level.heads) for level in lattice.levels} == {
        (0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)
    }  # fmt: skip
    for multiple, widths in ((32, [0, 32, 64, 96]), (40, [0, 40, 80, 96]), (96, [0, 96])):
        found = module_levels(checkpoint.family, mlp, Units(mlp_multiple=multiple))
        assert [level.width for level in found.levels] == widths


def test_a_unit_wider_than_the_mlp_is_refused(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    with pytest.raises(RecipeError, match=r"units\.mlp_multiple is 128, but block 0 mlp has only 96 channels"):
        module_levels(checkpoint.family, module_shapes(checkpoint)[1], Units(mlp_multiple=128))


def test_budgets(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    space = SearchSpace(tuple(module_levels(checkpoint.family, s, Units()) for s in module_shapes(checkpoint)))
    dense = space.params(space.dense)
    assert budget_of(space, 1.0, 0.005).upper == dense
    half = budget_of(space, 0.5, 0.005)
    assert half.upper == dense // 2
    assert half.allows(half.upper)
    assert half.allows(half.lower)
    assert not half.allows(half.upper + 1)
    assert not half.allows(half.lower - 1)
    smallest = min(level.params for module in space.modules for level in module.levels[1:])
    assert budget_of(space, (smallest + 0.5) / dense, 0.005).upper == smallest
    with pytest.raises(BudgetError, match=f"less than the smallest model that the units allow: {smallest:,}"):
        budget_of(space, (smallest - 1) / dense, 0.005)
