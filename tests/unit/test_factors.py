"""Nested factors against direct least squares."""

import numpy as np
import pytest
import torch
from tests.unit.test_removal_order import second_moment, weight

from darwinlm.database.factors import kept_weights, narrower_factors, nested_factors, unpack_lower, whole_factor_
from darwinlm.database.order import damp, damp_, ordered_moment
from darwinlm.runtime.errors import NumericsError


def permutation(d, seed=2):
    return torch.from_numpy(np.random.default_rng(seed).permutation(d))


def least_squares(H, W, kept):
    """Weights on some columns that minimise tr((W - V) H (W - V)ᵀ), and that minimum."""
    H, W = H.double().numpy(), W.double().numpy()
    root = np.linalg.cholesky(H).T  # H = rootᵀ root: the error is ‖root (W - V)ᵀ‖²
    V = np.zeros_like(W)
    if len(kept):
        V[:, kept] = np.linalg.lstsq(root[:, kept], root @ W.T, rcond=None)[0].T
    return V[:, kept], np.sum((root @ (W - V).T) ** 2)


def assert_weights(got, expected, rtol=1e-4):
    assert got.shape == expected.shape
    assert np.linalg.norm(got.double().numpy() - expected) <= rtol * np.linalg.norm(expected)


SIZES = [(12, 40, 40), (60, 40, 40), (1, 17, 17), (5, 1, 1), *((11, 30, p) for p in (0, 1, 13, 29, 30))]


@pytest.mark.parametrize("kind", ["plain", "low rank", "steep", "outliers"])
@pytest.mark.parametrize(("r", "d", "p"), SIZES)
def test_every_width_is_least_squares(kind, r, d, p):
    """Also where some columns are gone: the others still approximate the dense output."""
    H, W, columns = damp(second_moment(d, kind)), weight(r, d), permutation(d)[:p]
    factors, errors, _ = nested_factors(H, W, columns)
    assert factors.factor.shape == (p, p)
    assert factors.target.shape == (r, p)
    assert errors.shape == (p + 1,)
    assert p < d or errors[d] == 0
    for k in range(p + 1):
        V, error = least_squares(H, W, columns[:k].numpy())
        assert_weights(kept_weights(factors, k), V)
        assert errors[k].item() == pytest.approx(error, rel=1e-4, abs=1e-12 * float(errors[0]))


@pytest.mark.parametrize("kind", ["plain", "low rank", "outliers"])
@pytest.mark.parametrize("p", [1, 17, 40])
def test_any_columns_follow_from_the_factors_over_all(kind, p):
    """Only L of every column is stored: a subset, or another order, is as good as least squares on H itself."""
    H, W = damp(second_moment(40, kind)), weight(12, 40)
    (whole, _, _), columns = nested_factors(H, W, permutation(40)), permutation(40, seed=3)[:p]
    found = narrower_factors(whole, columns)
    assert torch.equal(found.columns, columns)
    for k in {1, p // 2, p}:
        expected, _ = least_squares(H, W, columns[:k].numpy())
        assert_weights(kept_weights(found, k), expected)


@pytest.mark.parametrize("kind", ["plain", "low rank", "steep", "outliers"])
def test_what_is_stored_is_the_factor_over_all_columns(kind):
    H, W, columns = second_moment(300, kind).float(), weight(20, 300).float(), permutation(300)
    expected, expected_errors, _ = nested_factors(damp(H.double()), W, columns)
    ordered = ordered_moment(H, columns)
    assert torch.equal(ordered, H[columns][:, columns].double())
    packed, errors, losses = whole_factor_(damp_(ordered), W, columns, name="block 0 mlp")
    torch.testing.assert_close(unpack_lower(packed, 300), expected.factor)
    torch.testing.assert_close(errors, expected_errors)
    assert losses is None
    with pytest.raises(NumericsError, match=r"block 0 mlp: .* positive definite"):
        whole_factor_(-torch.eye(300, dtype=torch.float64), W, columns, name="block 0 mlp")


@pytest.mark.parametrize("p", [300, 180])
def test_estimated_losses_weigh_the_error_by_the_gradients(p):
    """tr(S (W - W_k) H (W - W_k)ᵀ) / 2, whether some columns were gone before or not, stored or from all factors."""
    H, W, columns = second_moment(300, "outliers").float(), weight(20, 300).float(), permutation(300)[:p]
    S = second_moment(20, "steep").float()
    damped = damp(H.double())
    factors, _, found = nested_factors(damped, W, columns, S)
    assert found.shape == (p + 1,)
    for k in {0, 1, p // 2, p}:
        error = W.double().clone()
        error[:, columns[:k]] -= kept_weights(factors, k).double()
        expected = (S.double() @ error @ damped @ error.T).trace() / 2
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-5 * float(found[0]))
    if p == 300:
        _, _, stored = whole_factor_(damp_(ordered_moment(H, columns)), W, columns, S)
        torch.testing.assert_close(stored, found, rtol=1e-3, atol=1e-5 * float(found[0]))


def test_not_finite_and_not_positive_definite():
    H, W = damp(second_moment(6, "plain")), weight(3, 6)
    for bad_H, bad_W in [(H.clone(), W), (H, W.clone())]:
        (bad_H if bad_W is W else bad_W)[2, 2] = float("nan")
        with pytest.raises(NumericsError, match="block 3 mlp"):
            nested_factors(bad_H, bad_W, torch.arange(6), name="block 3 mlp")
    with pytest.raises(NumericsError, match=r"block 3 mlp: .* positive definite"):
        nested_factors(torch.zeros(6, 6), W, torch.arange(6), name="block 3 mlp")
