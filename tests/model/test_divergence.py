"""KL and cross-entropy against PyTorch's own in float64."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from darwinlm.model.divergence import ROWS, DenseDistribution, token_losses


def logits(n, v, seed, scale=3.0):
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * scale


def expected_kl(dense, candidate):
    p, q = (torch.log_softmax(z.double(), dim=-1) for z in (dense, candidate))
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)


def peaked(n, v):
    dense = torch.full((n, v), -1e4)
    dense[:, 0] = 1e4
    return dense


@pytest.mark.parametrize("n", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS + 5])
@pytest.mark.parametrize("v", [2, 300])
@pytest.mark.parametrize("kind", ["another", "itself", "shifted", "bfloat16", "from a peak", "a peak itself"])
def test_kl_is_that_of_pytorch(n, v, kind):
    dense, candidate = logits(n, v, 0), logits(n, v, 1)
    if "peak" in kind:
        dense = peaked(n, v)
    if "itself" in kind:
        candidate = dense
    if kind == "bfloat16":
        dense, candidate = dense.bfloat16(), candidate.bfloat16()
    shift, tolerance = (20, 1e-4) if kind == "shifted" else (0, 1e-2 if "peak" in kind else 1e-5)
    distribution = DenseDistribution(dense + shift)
    found = distribution.kl(candidate - shift)
    assert found.shape == (n,)
    assert found.dtype == distribution.probabilities.dtype == torch.float32
    expected = expected_kl(dense, candidate)
    torch.testing.assert_close(found.double(), expected, rtol=max(tolerance / 10, 1e-5), atol=tolerance)


def test_a_small_difference_is_still_seen():
    """Candidates of a search differ by little: the float32 sum mustn't drown that."""
    dense = logits(256, 5000, 0)
    candidate = dense + 1e-2 * logits(256, 5000, 1, scale=1.0)
    found = DenseDistribution(dense).kl(candidate).double().mean()
    torch.testing.assert_close(found, expected_kl(dense, candidate).mean(), rtol=2e-2, atol=0)


@pytest.mark.parametrize("n", [1, ROWS, ROWS + 1, 2 * ROWS + 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_losses_are_cross_entropies(n, dtype):
    z = logits(n, 77, 0).to(dtype)
    targets = torch.randint(77, (n,), generator=torch.Generator().manual_seed(2))
    found = token_losses(z, targets)
    assert found.dtype == torch.float32
    expected = cross_entropy(z.double(), targets, reduction="none")
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
