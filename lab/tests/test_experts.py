"""Rankings of whole experts."""

import pytest
import torch
from tests.integration.test_whole_experts import at, built, folder  # noqa: F401 - fixtures
from tests.tiny.stages import result

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import UnitsSettings
from darwinlm.runtime.errors import BudgetError, FamilyError
from darwinlm.search.problem import Budget, Problem
from darwinlm.stages.database import stream_of
from darwinlm.surgery.stitch import stitch
from darwinlm.units.cost import parameter_costs
from darwinlm.units.modules import ModuleReader
from darwinlm.units.space import SearchSpace
from lab.comparison.allocations import equal_experts
from lab.comparison.importance import expert_scores
from lab.comparison.ranked import ExpertReader


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
