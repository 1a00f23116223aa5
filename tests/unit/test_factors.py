"""Nested factors against direct least squares; errors never rise with more units, whatever the inputs are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.test_removal_order import second_moment, weight
from torch import Tensor

from darwinlm.database.factors import (
    NestedFactors,
    check_energy,
    full_target,
    kept_weights,
    narrower_errors,
    narrower_factors,
    unpack_lower,
    whole_factor_,
)
from darwinlm.database.order import damp_, ordered_moment, removal_order
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


def factors_over(H, W, columns):
    """Factors over all columns, float64."""
    L = torch.linalg.cholesky(H.double()[columns][:, columns])
    return NestedFactors(columns, L, W.double()[:, columns] @ L)


@pytest.mark.parametrize("kind", ["plain", "low rank", "steep", "outliers"])
@pytest.mark.parametrize(("r", "d", "p"), SIZES)
def test_every_width_is_least_squares(kind, r, d, p):
    """Also where some columns are gone: the others still approximate the dense output."""
    H, W, columns = damp_(second_moment(d, kind)), weight(r, d), permutation(d)[:p]
    whole = factors_over(H, W, permutation(d, seed=3))
    factors = narrower_factors(whole, columns)
    errors, losses = narrower_errors(whole.target, factors.target)
    assert torch.equal(factors.columns, columns)
    assert factors.factor.shape == (p, p)
    assert factors.target.shape == (r, p)
    assert errors.shape == (p + 1,)
    assert losses is None
    for k in range(p + 1):
        V, error = least_squares(H, W, columns[:k].numpy())
        assert_weights(kept_weights(factors, k), V)
        assert errors[k].item() == pytest.approx(error, rel=1e-4, abs=1e-12 * float(errors[0]))


@pytest.mark.parametrize("kind", ["plain", "low rank", "outliers"])
@pytest.mark.parametrize("p", [1, 17, 40])
def test_weights_of_any_columns_need_single_precision(kind, p):
    """Only L of every column is stored: a subset, or another order, is as good as least squares on H itself."""
    H, W, columns = damp_(second_moment(40, kind)), weight(12, 40), permutation(40, seed=3)[:p]
    whole = factors_over(H, W, permutation(40))
    found = narrower_factors(NestedFactors(whole.columns, whole.factor.float(), whole.target.float()), columns)
    for k in {1, p // 2, p}:
        expected, _ = least_squares(H, W, columns[:k].numpy())
        assert_weights(kept_weights(found, k), expected)


@pytest.mark.parametrize("kind", ["plain", "low rank", "steep", "outliers"])
def test_what_is_stored_is_the_factor_over_all_columns(kind):
    H, W, columns = second_moment(300, kind).float(), weight(20, 300).float(), permutation(300)
    expected = factors_over(damp_(H.double()), W, columns)
    ordered = ordered_moment(H, columns)
    assert torch.equal(ordered, H[columns][:, columns].double())
    packed, errors, losses = whole_factor_(damp_(ordered), W, columns, name="block 0 mlp")
    torch.testing.assert_close(unpack_lower(packed, 300), expected.factor.float())
    torch.testing.assert_close(errors, narrower_errors(expected.target, expected.target)[0])
    assert errors[-1] == 0
    assert losses is None
    for bad in (-torch.eye(300, dtype=torch.float64), torch.full((300, 300), torch.nan, dtype=torch.float64)):
        with pytest.raises(NumericsError, match=r"block 0 mlp: .* positive definite"):
            whole_factor_(bad, W, columns, name="block 0 mlp")


@pytest.mark.parametrize("p", [300, 180])
def test_estimated_losses_weigh_the_error_by_the_gradients(p):
    """tr(S (W - W_k) H (W - W_k)ᵀ) / 2, whether some columns were gone before or not, stored or from all factors."""
    H, W, columns = second_moment(300, "outliers").float(), weight(20, 300).float(), permutation(300)[:p]
    S = second_moment(20, "steep").float()
    damped = damp_(H.double())
    whole = factors_over(damped, W, permutation(300))
    factors = narrower_factors(whole, columns)
    _, found = narrower_errors(whole.target, factors.target, S)
    assert found.shape == (p + 1,)
    for k in {0, 1, p // 2, p}:
        error = W.double().clone()
        error[:, columns[:k]] -= kept_weights(factors, k)
        expected = (S.double() @ error @ damped @ error.T).trace() / 2
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-5 * float(found[0]))
    if p == 300:
        _, _, stored = whole_factor_(damp_(ordered_moment(H, columns)), W, columns, S)
        torch.testing.assert_close(stored, found, rtol=1e-3, atol=1e-5 * float(found[0]))


D, R = 12, 8


def moment(inputs: Tensor) -> Tensor:
    """The damped second moment [d, d] of inputs [t, d], as the database damps it."""
    H = inputs.T @ inputs / len(inputs)
    return H + 0.01 * H.diagonal().mean() * torch.eye(H.shape[0])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.sampled_from([1, 2, D, 200]),
    weight=st.floats(-12, 4),
    inputs=st.floats(-5, 3),
    spread=st.sampled_from([0.0, 2.0, 4.0]),
    dead=st.integers(0, D - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    keep=st.sampled_from([0, 1, D // 2, D - 1, D]),
)
def test_errors_never_rise_and_end_at_zero(seed, tokens, weight, inputs, spread, dead, dtype, keep):
    """Over scales, conditioning, dead and outlier channels, one token of text, and every width."""
    generator = torch.Generator().manual_seed(seed)
    channels = 10 ** (spread * torch.rand(D, generator=generator)) * 10**inputs
    channels[:dead] = 0
    x = torch.randn(tokens, D, generator=generator) * channels
    W = (torch.randn(R, D, generator=generator)).to(dtype).float() * 10**weight
    H = moment(x)
    order = removal_order(H, W, torch.arange(D)[:, None], damping=0.0, name="m").units
    packed, errors, _ = whole_factor_(ordered_moment(H, order), W, order)
    L = unpack_lower(packed, D)
    assert sorted(order.tolist()) == list(range(D))
    assert bool((errors.diff() <= 0).all())
    assert float(errors[-1]) == 0.0
    assert float(errors[0]) == pytest.approx(float(((W @ H) * W).sum()), rel=1e-3)
    kept = kept_weights(NestedFactors(order, L, full_target(L, W, order)), keep)
    whole = torch.zeros(R, D)
    whole[:, order[:keep]] = kept
    error = float((((W - whole).double() @ H.double()) * (W - whole).double()).sum())
    assert error == pytest.approx(float(errors[keep]), rel=1e-2, abs=1e-5 * float(errors[0]))


@pytest.mark.parametrize("scale", [1e-20, 1e-30, 1e-38, 1e-42, 1e20])
def test_weights_of_no_real_size_are_refused(scale):
    W = torch.randn(R, D, generator=torch.Generator().manual_seed(0)) * scale
    H = moment(torch.randn(50, D, generator=torch.Generator().manual_seed(1)))
    _, errors, _ = whole_factor_(H.double(), W, torch.arange(D))
    with pytest.raises(NumericsError, match=r"block 3 mlp: the energy of its outputs is .* scale its weights"):
        check_energy(float(errors[0]), "block 3 mlp")


def test_a_module_that_adds_nothing_is_fine():
    check_energy(0.0, "block 3 mlp")
    check_energy(1e-9, "block 3 mlp")
    with pytest.raises(NumericsError, match="block 3 mlp: the energy of its outputs is nan"):
        check_energy(float("nan"), "block 3 mlp")
