"""Perplexity, KL and agreement against whole logits in float64, and the memory that they take."""

import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from darwinlm.steps.evaluate.quality import measure_quality


class Table:
    """A model whose logits depend on the present token alone; it knows how many of its outputs still exist."""

    device = torch.device("cpu")

    def __init__(self, seed: int) -> None:
        self.logits = torch.randn(50, 50, generator=torch.Generator().manual_seed(seed)).double()
        self.given: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[int] = []

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        self.alive.append(sum(one() is not None for one in self.given))
        logits = self.logits[input_ids]
        self.given.append(weakref.ref(logits))
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("batch_tokens", [1, 200, 4000])
def test_figures_are_those_of_whole_logits(batch_tokens):
    tokens = torch.randint(50, (5, 150), generator=torch.Generator().manual_seed(1))
    dense, other = Table(1), Table(2)
    models = {"dense": dense, "other": other}
    for name, found in measure_quality(dense, models, tokens, batch_tokens=batch_tokens).items():
        p, q = dense.logits.log_softmax(-1), models[name].logits.log_softmax(-1)
        kl = (p.exp() * (p - q)).sum(-1)[tokens]
        same = (p.argmax(-1) == q.argmax(-1))[tokens[:, :-1]]
        assert found.agreement == pytest.approx(float(same.double().mean()))
        assert found.kl == pytest.approx(float(kl.mean()), rel=1e-4, abs=1e-5)
        loss = cross_entropy(models[name].logits[tokens][:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
        assert found.tokens == 5 * 149
    assert dense.alive == other.alive == [0] * len(dense.alive), "logits are gone before those of the next batch"
    assert measure_quality(dense, {}, tokens, batch_tokens=batch_tokens) == {}
