"""Ridge regression towards given weights, compared with least squares on augmented rows."""

import numpy as np
import pytest
import torch

from darwinlm.runtime.errors import NumericsError
from darwinlm.surgery.ridge import ridge_solution


def sample(n=200, d=12, r=5, seed=0, noise=0.3):
    """Inputs [n, d], outputs [n, r] that depend on them, and the weights [r, d] of the regularisation."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) @ (np.eye(d) + 0.4 * rng.standard_normal((d, d)))
    Y = X @ rng.standard_normal((d, r)) + noise * rng.standard_normal((n, r))
    return X, Y, rng.standard_normal((r, d))


def moments(X, Y):
    n = len(X)
    return torch.from_numpy(X.T @ X / n), torch.from_numpy(Y.T @ X / n), float((Y**2).sum() / n)


def by_lstsq(X, Y, W0, ridge):
    """The same weights from rows √λ I with targets √λ W0ᵀ below the sample."""
    n, d = X.shape
    strength = np.sqrt(ridge * np.mean(np.sum(X**2, 0) / n))
    A = np.vstack([X / np.sqrt(n), strength * np.eye(d)])
    B = np.vstack([Y / np.sqrt(n), strength * W0.T])
    return np.linalg.lstsq(A, B, rcond=None)[0].T


@pytest.mark.parametrize(
    ("ridge", "n"), [(0, 200), (1e-4, 6), (1e-4, 200), (0.3, 6), (0.3, 200), (10, 200), (1e9, 200)]
)
def test_it_is_least_squares_on_augmented_rows(ridge, n):
    X, Y, W0 = sample(n=n)
    H, C, _ = moments(X, Y)
    expected, W0 = by_lstsq(X, Y, W0, ridge), torch.from_numpy(W0)
    found = ridge_solution(H, C, W0, ridge)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-5)
    if ridge == 0.3 and n == 200:
        single = (matrix.float() for matrix in (H, C, W0))
        np.testing.assert_allclose(ridge_solution(*single, ridge).double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_an_input_that_is_always_zero_keeps_its_weights():
    X, Y, W0 = sample()
    X[:, 4] = 0
    H, C, _ = moments(X, Y)
    found = ridge_solution(H, C, torch.from_numpy(W0), 0.1)
    np.testing.assert_allclose(found[:, 4].numpy(), W0[:, 4], rtol=1e-5)
    given = torch.from_numpy(W0).float()
    assert torch.equal(ridge_solution(torch.zeros_like(H), torch.zeros_like(C), given, 0.3), given)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_refused_by_name(place, value):
    matrices = [torch.eye(4), torch.zeros(3, 4), torch.zeros(3, 4)]
    matrices[place][0, 1] = value
    with pytest.raises(NumericsError, match="block 7 mlp"):
        ridge_solution(*matrices, 0.1, name="block 7 mlp")


def test_moments_that_are_not_positive_definite_are_refused():
    H = torch.diag(torch.tensor([5.0, -3.0]))
    with pytest.raises(NumericsError, match=r"block 7 mlp.*refit.tokens=0"):
        ridge_solution(H, torch.zeros(1, 2), torch.zeros(1, 2), 0.1, name="block 7 mlp")
