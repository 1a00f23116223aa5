"""Ridge regression on second moments towards given weights, against least squares, and the moments of a refit."""

import numpy as np
import pytest
import torch

from darwinlm.model.walk import moments
from darwinlm.runtime.errors import NumericsError
from darwinlm.steps.refit.projection_fit import Moments
from darwinlm.steps.refit.ridge import ridge_solution


def sample(n=200, d=12, r=5):
    """Inputs [n, d], outputs [n, r] that depend on them, and the weights [r, d] of the regularisation."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, d)) @ (np.eye(d) + 0.4 * rng.standard_normal((d, d)))
    Y = X @ rng.standard_normal((d, r)) + 0.3 * rng.standard_normal((n, r))
    return X, Y, rng.standard_normal((r, d))


def of_sample(X, Y):
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
    H, C, _ = of_sample(X, Y)
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
    H, C, _ = of_sample(X, Y)
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


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def asked(monkeypatch):
    """Pretend that the device multiplies bfloat16 into float32; the element types of the factors of its products."""
    whole, types = torch.mm, []

    def mm(left, right, out_dtype):
        types.append((left.dtype, right.dtype, out_dtype))
        return whole(left.float(), right.float())

    monkeypatch.setattr(moments, "multiplies_into_float32", lambda device: True)
    monkeypatch.setattr(torch, "mm", mm)
    return types


PRODUCT = (torch.bfloat16, torch.bfloat16, torch.float32)


def test_a_refits_moments_are_products_of_bfloat16_near_those_of_float64(asked):
    """Targets are differences of streams that nearly agree; inputs have columns of very different size."""
    x = (rows(4096, 24) * torch.logspace(-3, 3, 24)).to(torch.bfloat16)
    before = rows(4096, 8, seed=1).to(torch.bfloat16)
    after = (before.float() + 0.02 * rows(4096, 8, seed=2)).to(torch.bfloat16)
    y = after.float() - before.float() + 0.003
    seen = Moments(24, 8, torch.device("cpu"), zip(x.split(1000), y.split(1000), strict=True))
    assert asked == [PRODUCT] * 15
    X, Y = x.double(), y.double()
    scale = torch.outer(Y.square().mean(0).sqrt(), X.square().mean(0).sqrt())
    assert ((seen.C.double() - Y.T @ X / 4096).abs() / scale).max() < 1e-6
    squares = X.square().mean(0).sqrt()
    assert ((seen.H.double() - X.T @ X / 4096).abs() / torch.outer(squares, squares)).max() < 1e-6
    assert seen.energy == pytest.approx(float(Y.square().sum() / 4096), rel=1e-12)
