"""KL and cross-entropy against PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from darwinlm.evaluation.divergence import ROWS, DenseDistribution, token_losses


def logits(n, v, seed, scale=3.0):
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * scale


def expected_kl(dense, candidate):
    p, q = (torch.log_softmax(z.double(), dim=-1) for z in (dense, candidate))
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)


@pytest.mark.parametrize("n", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5])
@pytest.mark.parametrize("v", [2, 300])
def test_kl_is_that_of_pytorch(n, v):
    dense, candidate = logits(n, v, 0), logits(n, v, 1)
    found = DenseDistribution(dense).kl(candidate)
    assert found.shape == (n,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected_kl(dense, candidate), rtol=1e-5, atol=1e-5)


def test_kl_of_a_model_with_itself_is_zero():
    dense = logits(200, 1000, 0)
    found = DenseDistribution(dense).kl(dense)
    assert found.abs().max() < 1e-5


def test_kl_does_not_change_when_logits_are_shifted():
    dense, candidate = logits(70, 50, 0), logits(70, 50, 1)
    distribution = DenseDistribution(dense + 20)
    torch.testing.assert_close(
        distribution.kl(candidate - 7), DenseDistribution(dense).kl(candidate), rtol=1e-4, atol=1e-4
    )


def test_a_small_difference_is_still_seen():
    """Candidates of a search differ by little: the float32 sum mustn't drown that."""
    dense = logits(256, 5000, 0)
    candidate = dense + 1e-2 * logits(256, 5000, 1, scale=1.0)
    found = DenseDistribution(dense).kl(candidate).double().mean()
    torch.testing.assert_close(found, expected_kl(dense, candidate).mean(), rtol=2e-2, atol=0)


def test_peaked_distributions_stay_finite():
    dense = torch.full((3, 40), -1e4)
    dense[:, 0] = 1e4
    same, other = DenseDistribution(dense).kl(dense), DenseDistribution(dense).kl(logits(3, 40, 1))
    assert torch.isfinite(same).all()
    assert same.abs().max() < 1e-2
    torch.testing.assert_close(other.double(), expected_kl(dense, logits(3, 40, 1)), rtol=1e-4, atol=1e-3)


def test_logits_in_bfloat16_are_computed_in_float32():
    dense, candidate = logits(ROWS + 3, 500, 0).bfloat16(), logits(ROWS + 3, 500, 1).bfloat16()
    distribution = DenseDistribution(dense)
    assert distribution.probabilities.dtype == torch.float32
    found = distribution.kl(candidate)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected_kl(dense, candidate), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("start", "n"), [(0, 5), (7, 20), (ROWS - 1, 2), (10, 2 * ROWS)])
def test_a_part_of_the_tokens_can_be_compared(start, n):
    dense, candidate = logits(3 * ROWS, 60, 0), logits(3 * ROWS, 60, 1)
    distribution = DenseDistribution(dense)
    torch.testing.assert_close(
        distribution.kl(candidate[start : start + n], start), distribution.kl(candidate)[start : start + n]
    )


def test_probabilities_are_a_distribution():
    distribution = DenseDistribution(logits(ROWS + 1, 90, 0))
    assert len(distribution) == ROWS + 1
    torch.testing.assert_close(distribution.probabilities.sum(-1), torch.ones(ROWS + 1))
    entropy = torch.distributions.Categorical(logits=logits(ROWS + 1, 90, 0)).entropy()
    torch.testing.assert_close(-distribution.negative_entropy, entropy)


@pytest.mark.parametrize("n", [1, ROWS, ROWS + 1, 2 * ROWS + 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_losses_are_cross_entropies(n, dtype):
    z = logits(n, 77, 0).to(dtype)
    targets = torch.randint(77, (n,), generator=torch.Generator().manual_seed(2))
    found = token_losses(z, targets)
    assert found.dtype == torch.float32
    expected = cross_entropy(z.double(), targets, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
