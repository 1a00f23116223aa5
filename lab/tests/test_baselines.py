"""Other methods against oracles: scores recomputed from the model, choices by brute force, masks by simulation."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.integration.test_whole_experts import at, built, folder  # noqa: F401 - fixtures
from tests.tiny.checkpoint import stream_over, tiny_checkpoint
from tests.tiny.masked import masked
from tests.tiny.stages import result
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.units.cost import parameter_costs
from darwinlm.model.units.levels import Level
from darwinlm.model.units.modules import ModuleReader
from darwinlm.model.units.space import SearchSpace
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.model.walk.stream import BlockStream, stream_of
from darwinlm.runtime.errors import BudgetError, FamilyError, NumericsError
from darwinlm.steps.budget.problem import Budget, Problem
from darwinlm.steps.stitch.stitch import stitch
from lab.comparison.allocations import best_random, best_uniform, equal_experts, even_uniform, without_blocks
from lab.comparison.importance import activation_scores, block_influence, expert_scores, magnitude_scores
from lab.comparison.ranked import ExpertReader, RankedReader, UnitScores, best_columns
from lab.comparison.sheared import shear

UNITS = UnitsSettings(mlp_multiple=8)
TOKENS = torch.arange(3 * 16).view(3, 16) * 7 % 259


@pytest.fixture(scope="module", params=["llama", "phi3", "qwen2"])
def checkpoint(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Checkpoint:
    return Checkpoint.open(tiny_folder(request.param))


@pytest.fixture
def stream(checkpoint: Checkpoint) -> BlockStream:
    return stream_over(checkpoint, TOKENS, 32)


def half(checkpoint: Checkpoint) -> Problem:
    """The problem of keeping half of a model."""
    space = SearchSpace(ModuleReader(checkpoint, UNITS).modules)
    upper = space.params(space.dense) // 2
    return Problem(space, parameter_costs(space), Budget(int(0.9 * upper), upper))


@torch.no_grad()
def test_magnitudes_are_sums_over_the_units_weights(checkpoint: Checkpoint) -> None:
    scores = magnitude_scores(checkpoint)
    for block, layer in enumerate(checkpoint.load(torch.float32).model.layers):
        mlp, attention = layer.mlp, layer.self_attn
        into = [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]
        expected = mlp.down_proj.weight.square().sum(0)
        for projection in into:
            expected = expected + projection.weight.square().sum(1).view(-1, len(expected)).sum(0)
        torch.testing.assert_close(scores[block, "mlp"].units.float(), expected, rtol=1e-5, atol=1e-6)
        if not hasattr(attention, "q_proj"):
            continue
        query, key, value = (
            sum(each.square().view(len(each), -1).sum(1) for each in projection.parameters())
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        heads = (query + attention.o_proj.weight.square().sum(0)).view(-1, attention.head_dim).sum(1)
        own = scores[block, "attention"]
        torch.testing.assert_close(own.units.flatten().float(), heads, rtol=1e-5, atol=1e-6)
        groups = (key + value).view(-1, attention.head_dim).sum(1)
        torch.testing.assert_close(own.groups.float(), groups, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_activations_are_those_of_the_whole_model(checkpoint: Checkpoint, stream: BlockStream) -> None:
    scores = activation_scores(stream)
    model = checkpoint.load(torch.float32)
    layer = model.model.layers[2]
    seen: dict[str, Tensor] = {}
    layer.mlp.down_proj.register_forward_pre_hook(lambda _, x: seen.update(mlp=x[0]))
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _, x: seen.update(attention=x[0]))
    model(input_ids=TOKENS)
    expected = seen["mlp"].abs().mean(dim=1).norm(dim=0)
    torch.testing.assert_close(scores[2, "mlp"].units, expected, rtol=1e-4, atol=1e-6)
    heads = seen["attention"].unflatten(-1, (3, 2, -1)).norm(dim=-1).mean(dim=1).norm(dim=0)
    torch.testing.assert_close(scores[2, "attention"].units, heads, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_block_influence_is_the_turn_of_the_residual_stream(checkpoint: Checkpoint, stream: BlockStream) -> None:
    influence = block_influence(stream)
    model = checkpoint.load(torch.float32)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
        layer.register_forward_hook(lambda _, x, y: outputs.append(y[0] if isinstance(y, tuple) else y))
    model(input_ids=TOKENS)
    for block, (before, after) in enumerate(zip(inputs, outputs, strict=True)):
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        assert influence[block] == pytest.approx(1 - float(cosine.mean()), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["lattice", "query_head"])
@pytest.mark.parametrize("scaled", [False, True])
def test_stitched_is_the_masked_dense_model(checkpoint: Checkpoint, *, scaled: bool, attention: str) -> None:
    scores = magnitude_scores(checkpoint)
    if scaled:
        generator = torch.Generator().manual_seed(1)
        shapes = {(s.block, s.kind): s for s in module_shapes(checkpoint)}
        scores = {
            place: UnitScores(one.units, one.groups, 0.5 + torch.rand(shapes[place].sizes.width, generator=generator))
            for place, one in scores.items()
        }
    reader = RankedReader(checkpoint, UnitsSettings(mlp_multiple=8, attention=attention), scores)
    rng = random.Random(0)
    allocation = tuple(rng.randrange(len(module.levels)) for module in reader.modules)
    ours = stitch(reader, allocation).float()(input_ids=TOKENS).logits
    theirs = masked(reader, allocation)(input_ids=TOKENS).logits
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_mixtures_of_experts_are_refused(tiny_folder: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint.open(tiny_folder("mixtral"))
    with pytest.raises(FamilyError, match="mixture of experts"):
        RankedReader(checkpoint, UNITS, {})
    with pytest.raises(FamilyError, match="sheared does not support mixtures"):
        shear(None, checkpoint.family, module_shapes(checkpoint), [], [], seed=0)
    problem = half(checkpoint)
    assert any(len(module.levels) == 1 for module in problem.space.modules)
    with pytest.raises(BudgetError, match="modules that are never cut, so whole blocks can't be removed"):
        without_blocks(problem, [0.1, 0.2, 0.3, 0.4])


def test_masks_whose_loss_is_not_finite_are_refused(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    model = checkpoint.load(torch.float32)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    reader = ModuleReader(checkpoint, UNITS)
    shapes = [reader.shapes[module.block, module.kind] for module in reader.modules]
    levels = [module.levels[-1] for module in reader.modules]
    with pytest.raises(NumericsError, match=r"sheared: the loss isn't finite in step 1: leave it out of --methods"):
        shear(model, checkpoint.family, shapes, levels, torch.arange(32).view(2, 1, 16), seed=0)


def test_choices_keep_the_budget_and_are_the_best(checkpoint: Checkpoint) -> None:
    problem = half(checkpoint)
    space, budget = problem.space, problem.budget
    weights = [random.Random(f"{index}").random() for index in range(len(space.modules))]

    def loss(allocation: tuple[int, ...]) -> float:
        return -sum(weight * level for weight, level in zip(weights, allocation, strict=True))

    uniform = best_uniform(problem, loss)
    for kind in ("attention", "mlp"):
        levels = {level for module, level in zip(space.modules, uniform, strict=True) if module.kind == kind}
        assert len(levels) == 1
    chosen, drawn = best_random(problem, loss, tries=5, seed=3)
    assert drawn == 5
    assert budget.allows(space.params(chosen))
    assert (chosen, 5) == best_random(problem, loss, tries=5, seed=3)
    first = best_random(problem, loss, tries=1, seed=3)
    assert loss(chosen) <= loss(first[0])
    assert best_random(problem, loss, tries=5, seed=3, seconds=0) == first
    even = even_uniform(problem)
    assert max(map(space.params, (uniform, even))) <= budget.upper
    levels = zip(space.modules, space.levels(even), strict=True)
    shares = {module.kind: level.params / module.levels[-1].params for module, level in levels}
    assert abs(shares["attention"] - shares["mlp"]) < 0.2


def test_blocks_of_least_influence_go(checkpoint: Checkpoint) -> None:
    problem = half(checkpoint)
    chosen = without_blocks(problem, [0.5, 0.1, 0.9, 0.2])
    kept = {module.block for module, level in zip(problem.space.modules, chosen, strict=True) if level}
    assert kept == {0, 2}
    assert all(level in (0, top) for level, top in zip(chosen, problem.space.dense, strict=True))
    with pytest.raises(BudgetError, match="even a single one exceeds"):
        without_blocks(replace(problem, budget=Budget(0, 10)), [0.5, 0.1, 0.9, 0.2])
    with pytest.raises(BudgetError, match="no uniform model has at most"):
        best_uniform(replace(problem, budget=Budget(-2, -1)), lambda allocation: 0.0)


def test_masks_find_the_channels_and_heads_that_do_something(tmp_path: Path) -> None:
    """Half of the channels and one head of each group give nothing: learning must drop just these."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "m", num_hidden_layers=2, num_key_value_heads=2))
    model = checkpoint.load(torch.float32)
    shapes = module_shapes(checkpoint)
    generator = torch.Generator().manual_seed(0)
    idle: dict[tuple[int, str], Tensor] = {}
    levels = []
    with torch.no_grad():
        for one in shapes:
            layer = model.model.layers[one.block]
            if one.kind == "mlp":
                gone = torch.randperm(one.sizes.width, generator=generator)[: one.sizes.width // 2]
                layer.mlp.down_proj.weight[:, gone] = 0
                layer.mlp.down_proj.weight *= 3
                levels.append(Level(LayerSizes("mlp", one.sizes.width // 2), 0))
            else:
                gone = torch.cat([torch.arange(8) + 8 * head for head in (1, 3)])
                layer.self_attn.o_proj.weight[:, gone] = 0
                layer.self_attn.o_proj.weight *= 3
                levels.append(Level(LayerSizes("attention", 32, groups=2, head_dim=8), 0))
            idle[one.block, one.kind] = gone
        # Text that the model itself finds likely, so that what it does matters.
        text = torch.randint(3, 259, (1, 1), generator=generator).expand(8, 1)
        with torch.random.fork_rng(devices=[]):  # it takes no generator
            torch.manual_seed(0)
            text = model.generate(text, max_new_tokens=40, do_sample=True, pad_token_id=0)
    batches = [text[torch.randperm(8, generator=generator)] for _ in range(100)]
    scores, record = shear(model, checkpoint.family, shapes, levels, batches, seed=1, rate=1e-3)
    assert record["largest_gap"] < 0.1
    for one, level in zip(shapes, levels, strict=True):
        columns = set(best_columns(one, level, scores[one.block, one.kind]).tolist())
        assert len(columns) == level.sizes.width
        wrong = columns & set(idle[one.block, one.kind].tolist())
        assert len(wrong) <= 0.25 * level.sizes.width, (one.name, len(wrong))


@torch.no_grad()
def test_scores_are_those_of_a_loop_over_tokens(built):
    run, texts, reader = built
    found = expert_scores(stream_of(run.context, result(run, "dense"), texts["calibration"].tokens))
    model = reader.checkpoint.load(torch.float32)
    seen = []
    mlp = model.model.layers[2].mlp
    handle = mlp.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(0, 1)))
    model(texts["calibration"].tokens, use_cache=False)
    handle.remove()
    hidden = torch.cat(seen)
    _, weights, chosen = mlp.gate(hidden)
    asked, sums = torch.zeros(4), torch.zeros(4)
    for x, row, own in zip(hidden, weights, chosen, strict=True):
        for weight, expert in zip(row, own.tolist(), strict=True):
            gate, up = (mlp.experts.gate_up_proj[expert] @ x).chunk(2)
            asked[expert] += 1
            sums[expert] += weight * (mlp.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)).norm()
    assert found[2].asked.tolist() == asked.tolist()
    torch.testing.assert_close(found[2].added.float(), sums / asked, rtol=1e-3, atol=1e-5)


def test_the_best_ranked_experts_stay_with_their_own_weights(built):
    _, _, reader = built
    space = SearchSpace(reader.modules)
    allocation = equal_experts(
        Problem(space, parameter_costs(space), Budget(0, space.params(at(reader, experts=2, width=96))))
    )
    scores = {block: torch.tensor([0.1, 3.0, 2.0, 0.2]) for block in range(4)}
    small = stitch(ExpertReader(reader.checkpoint, UnitsSettings(mlp_multiple=8), scores), allocation)
    dense = reader.checkpoint.load(torch.float32)
    for ours, theirs in zip(small.model.layers, dense.model.layers, strict=True):
        assert torch.equal(ours.mlp.experts.gate_up_proj, theirs.mlp.experts.gate_up_proj[[1, 2]])
        assert torch.equal(ours.mlp.gate.weight, theirs.mlp.gate.weight[[1, 2]])


def test_rankings_of_experts_need_experts_that_may_go(built, tiny_llama):
    _, _, reader = built
    units = UnitsSettings(experts="width", mlp_multiple=8)
    narrow = SearchSpace(ModuleReader(reader.checkpoint, units).modules)
    with pytest.raises(BudgetError, match="the same number of whole experts in every block, and none fits into"):
        equal_experts(Problem(narrow, parameter_costs(narrow), Budget(0, narrow.params(narrow.dense) // 2)))
    dense = SearchSpace(ModuleReader(Checkpoint.open(tiny_llama), units).modules)
    with pytest.raises(FamilyError, match="this model has no mixture of experts"):
        equal_experts(Problem(dense, parameter_costs(dense), Budget(0, dense.params(dense.dense) // 2)))
