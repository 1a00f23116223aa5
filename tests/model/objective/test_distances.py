"""Distances, and probes of their curvature against second derivatives."""

import pytest
import torch
from torch.nn import functional

from darwinlm.model.objective import distances
from darwinlm.model.objective.embeddings import Embeddings
from darwinlm.model.objective.item_objective import Bank
from darwinlm.model.objective.scores import Scores

OBJECTIVES = {
    "score": (Scores(labels="score"), 1),
    "numbers": (Scores(labels="numbers"), 3),
    "one": (Scores(labels="one"), 4),
    "two": (Scores(labels="one"), 2),
    "several": (Scores(labels="several"), 3),
    "embeddings": (Embeddings(), 5),
}


def alone(outputs):
    """A bank that holds only the text itself, so that no order is compared."""
    return Bank(outputs.detach())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_second_moment_of_probes_is_the_curvature(name):
    objective, count = OBJECTIVES[name]
    dense = torch.randn(1, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def distance(outputs):
        return objective.distance(outputs[None], dense, alone(dense)).sum()

    hessian = torch.autograd.functional.hessian(distance, dense[0].clone())
    moment = torch.zeros(count, count, dtype=torch.float64)
    draws = 4000
    for key in range(draws):
        outputs = dense.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective.probe(outputs, torch.tensor([key])).sum(), outputs)
        moment += gradient.T @ gradient / draws
    torch.testing.assert_close(moment, hessian, rtol=0.1, atol=0.04)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_distances_are_zero_at_the_dense_outputs_and_positive_elsewhere(name):
    objective, count = OBJECTIVES[name]
    dense = torch.randn(6, count, generator=torch.Generator().manual_seed(2))
    other = dense + 0.3 * torch.randn(6, count, generator=torch.Generator().manual_seed(3))
    assert objective.distance(dense, dense, Bank(dense)).abs().max() < 1e-5
    assert objective.distance(other, dense, Bank(dense)).min() > 0


def test_the_order_of_similarities_counts():
    dense = functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    towards = functional.normalize(dense[:1] + 0.2 * dense[1:2], dim=-1)
    bank = Bank(dense)
    distance = distances.embedding_distance(towards, dense[:1], bank.outputs, bank.same(1))
    assert distance > 1 - (towards * dense[:1]).sum() + 1e-4


def test_signs_depend_on_the_text_alone():
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 9]])
    first, last = torch.tensor([0, 4, 4]), torch.tensor([2, 6, 7])
    keys = distances.text_keys(ids, torch.zeros(3, dtype=torch.int64), first, last)
    assert keys[0] == keys[1] != keys[2]
    drawn = distances.signs(torch.arange(2000), 16)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert (drawn.T @ drawn / 2000 - torch.eye(16)).abs().max() < 0.1
