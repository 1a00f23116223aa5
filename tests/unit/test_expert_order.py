"""The order in which experts go, against mixtures with and without them that are run as they are."""

import copy
from typing import Any

import pytest
import torch
from tests.tiny.models import tiny_model
from torch import nn

from darwinlm.calibration.experts import RoutedSample, order_experts
from darwinlm.families.family import families

CASES = [
    ("mixtral", {}),
    ("qwen3_moe", {}),
    ("qwen3_moe", {"norm_topk_prob": False}),
    ("olmoe", {}),
    ("gpt_oss", {}),
    ("deepseek_v2", {}),
    ("glm4_moe_lite", {}),
    ("granitemoehybrid_experts", {}),
    ("gemma4_text_experts", {}),
]


class Beside(nn.Module):
    """The experts of Gemma 4 with their router, which are modules of the block."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.router, self.experts = block.router, block.experts

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        _, weights, chosen = self.router(hidden[0])
        return self.experts(hidden[0], chosen, weights)[None]


def parts(block: Any) -> tuple[Any, Any]:
    """The mixture of a block, and the MLP beside its experts or their shared expert."""
    if hasattr(block, "experts"):
        return Beside(block), block.mlp
    if hasattr(block, "block_sparse_moe"):
        return block.block_sparse_moe, block.shared_mlp
    return block.mlp, getattr(block.mlp, "shared_experts", None)


def size(y: torch.Tensor) -> torch.Tensor:
    """What a norm divides by."""
    return y.square().mean(-1, keepdim=True).sqrt()


def sampled(block: Any, model_type: str, hidden: torch.Tensor, divisor: Any = lambda _: None) -> RoutedSample:
    """What the mixture does with some tokens."""
    sample = RoutedSample(block, families()[model_type].mlp, len(hidden), divisor)
    mlp, beside = parts(block)
    with sample.watch():
        mlp(hidden[None])
        if beside is not getattr(mlp, "shared_experts", None):
            beside(hidden)
    return sample


def without(mlp: Any, gone: set[int], hidden: torch.Tensor) -> torch.Tensor:
    """Output of a mixture whose router and experts have lost some rows."""
    left = copy.deepcopy(mlp)
    stay = [expert for expert in range(mlp.experts.num_experts) if expert not in gone]
    for holder in (getattr(left, "gate", None) or left.router, left.experts):
        for name, tensor in (*holder.named_parameters(), *holder.named_buffers()):
            tensor.data = tensor.data if name == "scale" else tensor.data[stay]
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
    names, block = families()[model_type].mlp, model.model.layers[2]
    mlp, beside = parts(block)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(150, 48, generator=generator)
    root = torch.randn(48, 48, generator=generator)
    S = root @ root.T if weighted else torch.eye(48)
    dense = output(mlp, hidden)
    divisor = size if names.post_norm else lambda y: None
    by = size(dense) if names.post_norm else 1
    sample = sampled(block, model_type, hidden, divisor)
    found = order_experts(block, names, model.config, sample, S if weighted else None, lambda tensor: tensor)

    def lost(gone: set[int], metric: torch.Tensor) -> float:
        error = (without(mlp, gone, hidden) - dense) / by
        return float(((error @ metric) * error).sum() / len(hidden))

    count = mlp.experts.num_experts
    gone: set[int] = set()
    for place in range(count - 1, getattr(model.config, names.experts.chosen) - 1, -1):
        costs = {expert: lost(gone | {expert}, S) for expert in range(count) if expert not in gone}
        cheapest = min(costs, key=costs.__getitem__)
        assert int(found.experts[place]) == cheapest
        gone.add(cheapest)
        assert float(found.errors[place]) == pytest.approx(lost(gone, torch.eye(48)), rel=1e-3)
        if weighted:
            assert found.losses is not None
            assert float(found.losses[place]) == pytest.approx(lost(gone, S) / 2, rel=1e-3)
    assert sorted(found.experts.tolist()) == list(range(count))
    inside = hasattr(mlp, "shared_experts")
    routed = (dense - beside(hidden) if inside else dense) / by
    assert float(found.errors[0]) == pytest.approx(float(routed.square().sum() / len(hidden)), rel=1e-3)
    if weighted:
        assert found.losses is not None
        if beside is not None and not inside:
            routed = routed + beside(hidden) / (size(beside(hidden)) if names.post_norm else 1)
        whole = dense if inside else routed
        assert float(found.losses[0]) == pytest.approx(float(((whole @ S) * whole).sum() / len(hidden) / 2), rel=1e-3)
    assert float(found.errors[count]) == 0
    assert (found.losses is None) == (not weighted)


@torch.no_grad()
def test_sums_over_processes_are_means_over_all_tokens():
    """Two processes with the same tokens find what one of them finds."""
    model = tiny_model("mixtral")
    block, names = model.model.layers[0], families()["mixtral"].mlp
    sample = sampled(block, "mixtral", torch.randn(90, 48, generator=torch.Generator().manual_seed(2)))
    one = order_experts(block, names, model.config, sample, None, lambda tensor: tensor)
    two = order_experts(block, names, model.config, sample, None, lambda tensor: tensor.mul_(2))
    assert two.experts.tolist() == one.experts.tolist()
    torch.testing.assert_close(two.errors, one.errors)
