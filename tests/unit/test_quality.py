"""Perplexity and KL of several models on the same tokens, and what is held in memory meanwhile."""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from darwinlm.evaluation.quality import measure_quality

VOCABULARY = 11


class Table:
    """A model whose logits depend on the present token alone; it knows how many of its outputs still exist."""

    device = torch.device("cpu")

    def __init__(self, seed: int) -> None:
        self.logits = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
        self.given: list[weakref.ref[torch.Tensor]] = []
        self.alive: list[int] = []

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        self.alive.append(sum(one() is not None for one in self.given))
        logits = self.logits[input_ids]
        self.given.append(weakref.ref(logits))
        return SimpleNamespace(logits=logits)


@pytest.fixture
def tokens():
    return torch.randint(VOCABULARY, (5, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("batch_tokens", [1, 14, 35])
def test_figures_are_those_of_pytorch_whatever_the_batch(tokens, batch_tokens):
    dense, other = Table(1), Table(2)
    found = measure_quality(dense, {"dense": dense, "other": other}, tokens, batch_tokens=batch_tokens)
    for name, model in (("dense", dense), ("other", other)):
        logits = model.logits[tokens]
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        both = (log_softmax(each.flatten(0, 1), -1) for each in (logits, dense.logits[tokens]))
        assert found[name].perplexity == pytest.approx(math.exp(loss), rel=1e-5)
        assert found[name].kl == pytest.approx(float(kl_div(*both, reduction="batchmean", log_target=True)), abs=1e-5)
        assert found[name].tokens == 5 * 6


def test_logits_are_gone_before_those_of_the_next_batch_are_made(tokens):
    dense, other = Table(1), Table(2)
    measure_quality(dense, {"dense": dense, "other": other}, tokens, batch_tokens=7)
    assert dense.alive == [0] * 5
    assert other.alive == [0] * 5


def test_nothing_to_measure_gives_nothing(tokens):
    assert measure_quality(Table(1), {}, tokens, batch_tokens=7) == {}
