"""The order in which experts go, against mixtures with and without them that are run as they are."""

import copy
from typing import Any

import pytest
import torch
from tests.tiny.models import tiny_model

from darwinlm.calibration.experts import order_experts
from darwinlm.families.family import families

CASES = [
    ("mixtral", {}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("olmoe", {}),
    ("gpt_oss", {}),
    ("deepseek_v2", {}),
    ("glm4_moe_lite", {}),
]


def without(mlp: Any, gone: set[int], hidden: torch.Tensor) -> torch.Tensor:
    """Output of a mixture whose router and experts have lost some rows."""
    left = copy.deepcopy(mlp)
    stay = [expert for expert in range(mlp.experts.num_experts) if expert not in gone]
    for holder in (getattr(left, "gate", None) or left.router, left.experts):
        for tensor in (*holder.parameters(), *holder.buffers()):
            tensor.data = tensor.data[stay]
        holder.num_experts = len(stay)
    return output(left, hidden)


def output(mlp: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What a mixture makes of [n, m]; the one of gpt-oss returns more than that."""
    result = mlp(hidden[None])
    return (result[0] if isinstance(result, tuple) else result)[0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("model_type", "settings"), CASES)
@torch.no_grad()
def test_experts_go_one_by_one_where_least_is_lost_with_tokens_sent_elsewhere(model_type, settings, weighted):
    model = tiny_model(model_type, **settings)
    mlp, names = model.model.layers[2].mlp, families()[model_type].mlp.experts
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(150, 48, generator=generator)
    root = torch.randn(48, 48, generator=generator)
    S = root @ root.T if weighted else torch.eye(48)
    found = order_experts(mlp, names, model.config, hidden, S if weighted else None, lambda tensor: tensor)
    dense = output(mlp, hidden)

    def lost(gone: set[int], metric: torch.Tensor) -> float:
        error = without(mlp, gone, hidden) - dense
        return float(((error @ metric) * error).sum() / len(hidden))

    count = mlp.experts.num_experts
    gone: set[int] = set()
    for place in range(count - 1, model.config.num_experts_per_tok - 1, -1):
        costs = {expert: lost(gone | {expert}, S) for expert in range(count) if expert not in gone}
        cheapest = min(costs, key=costs.__getitem__)
        assert int(found.experts[place]) == cheapest
        gone.add(cheapest)
        assert float(found.errors[place]) == pytest.approx(lost(gone, torch.eye(48)), rel=1e-3)
        if weighted:
            assert found.losses is not None
            assert float(found.losses[place]) == pytest.approx(lost(gone, S) / 2, rel=1e-3)
    assert sorted(found.experts.tolist()) == list(range(count))
    routed = dense - mlp.shared_experts(hidden) if hasattr(mlp, "shared_experts") else dense
    assert float(found.errors[0]) == pytest.approx(float(routed.square().sum() / len(hidden)), rel=1e-3)
    if weighted:
        assert found.losses is not None
        assert float(found.losses[0]) == pytest.approx(float(((dense @ S) * dense).sum() / len(hidden) / 2), rel=1e-3)
    assert float(found.errors[count]) == 0
    assert (found.losses is None) == (not weighted)


@torch.no_grad()
def test_sums_over_processes_are_means_over_all_tokens():
    """Two processes with the same tokens find what one of them finds."""
    model = tiny_model("mixtral")
    mlp, names = model.model.layers[0].mlp, families()["mixtral"].mlp.experts
    hidden = torch.randn(90, 48, generator=torch.Generator().manual_seed(2))
    one = order_experts(mlp, names, model.config, hidden, None, lambda tensor: tensor)
    two = order_experts(mlp, names, model.config, hidden, None, lambda tensor: tensor.mul_(2))
    assert two.experts.tolist() == one.experts.tolist()
    torch.testing.assert_close(two.errors, one.errors)
