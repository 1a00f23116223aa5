"""Removal order against plain Optimal Brain Surgeon, and nested factors against least squares, for any inputs."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from darwinlm.runtime.errors import NumericsError
from darwinlm.steps.database import order as order_module
from darwinlm.steps.database.factors import (
    NestedFactors,
    check_energy,
    full_target,
    kept_weights,
    narrower_errors,
    narrower_factors,
    unpack_lower,
    whole_factor_,
)
from darwinlm.steps.database.order import damp_, ordered_moment, removal_order

DAMPING = 0.01


def second_moment(d, kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "plain":
        X = rng.standard_normal((3 * d, d)) @ (np.eye(d) + 0.2 * rng.standard_normal((d, d)))
    elif kind == "low rank":
        X = rng.standard_normal((max(1, d // 4), d))
    elif kind == "steep":
        X = np.logspace(0, -6, d)[:, None] * rng.standard_normal((d, d))
    elif kind == "outliers":
        X = rng.standard_normal((max(1, d // 3), d))
        X[:, ::7] *= 200
    else:
        raise ValueError(kind)
    X = X * np.exp(0.5 * rng.standard_normal(d))
    return torch.from_numpy(X.T @ X / len(X))


def weight(r, d, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((r, d)))


def channels(d):
    return torch.arange(d)[:, None]


def naive(H, W, units, S=None, order=None):
    """Remove unit after unit; H is damped. Follow an order (first removed first) or take the cheapest.

    Returns the order, its costs, the least cost that was available at every step, and the loss after every step.
    """
    H, W, units = H.double().numpy(), W.double().numpy(), units.numpy()
    S = np.eye(len(W)) if S is None else S.double().numpy()
    C, V, left = np.linalg.inv(H), W.copy(), list(range(len(units)))
    removed, costs, least, losses = [], [], [], []
    for step in range(len(units)):
        price = {}
        for g in left:
            c = units[g]
            price[g] = np.trace(np.linalg.inv(C[np.ix_(c, c)]) @ V[:, c].T @ S @ V[:, c])
        g = min(left, key=lambda unit: price[unit]) if order is None else int(order[step])
        least.append(min(price.values()))
        costs.append(price[g])
        c = units[g]
        rows = np.linalg.inv(C[np.ix_(c, c)]) @ C[c]
        V = V - V[:, c] @ rows
        C = C - C[:, c] @ rows
        V[:, c] = 0
        left.remove(g)
        removed.append(g)
        losses.append(np.trace(S @ (W - V) @ H @ (W - V).T))
    return removed, np.array(costs), np.array(least), np.array(losses)


def assert_matches(order, H, W, units, S=None, *, rtol=2e-4, exact=True):
    """The order (up to ties) and losses of the naive form at every step, to float32 at the largest inflation."""
    removed = order.units.flip(0).tolist()
    assert sorted(removed) == list(range(len(units)))
    _, costs, least, losses = naive(H, W, units, S, removed)
    np.testing.assert_array_less(costs, least * (1 + rtol) + 1e-12 * losses[-1])
    got = order.costs.flip(0).numpy()
    np.testing.assert_allclose(got, costs, rtol=rtol, atol=1e-9 * losses[-1])
    np.testing.assert_allclose(np.cumsum(got), losses, rtol=rtol, atol=1e-9 * losses[-1])
    if exact:
        assert removed == naive(H, W, units, S)[0]


SIZES = [(12, 40, 1), (60, 40, 1), (1, 40, 1), (5, 1, 1), (10, 8, 6), (70, 8, 6), (20, 2, 24), (20, 1, 16), (20, 24, 2)]


@pytest.mark.parametrize("kind", ["plain", "low rank", "steep", "outliers"])
@pytest.mark.parametrize(("r", "n", "u"), SIZES)
def test_it_is_the_order_of_the_naive_form(kind, r, n, u):
    H, W = second_moment(n * u, kind), weight(r, n * u)
    units = torch.arange(n * u).view(n, u)
    assert_matches(removal_order(H, W, units), damp_(H.clone(), DAMPING), W, units)


@pytest.mark.parametrize("u", [1, 4])
def test_units_may_hold_any_columns(u):
    d = 36
    H, W = second_moment(d, "plain"), weight(9, d)
    units = torch.from_numpy(np.random.default_rng(5).permutation(d)).view(-1, u).int()
    order = removal_order(H, W, units)
    assert_matches(order, damp_(H.clone(), DAMPING), W, units)
    assert units[order.units].reshape(-1)[:u].tolist() == units[order.units[0]].tolist()
    assert sorted(units[order.units].reshape(-1).tolist()) == list(range(d))


@pytest.mark.parametrize("u", [1, 8])
@pytest.mark.parametrize("kind", ["low rank", "steep", "outliers"])
def test_ill_conditioned_runs_in_float64(kind, u, monkeypatch):
    d, damping = 48, 1e-6
    H, W = second_moment(d, kind), weight(16, d)
    units = torch.arange(d).view(-1, u)
    order = removal_order(H, W, units, damping=damping)
    assert_matches(order, damp_(H.clone(), damping), W, units, exact=False)
    monkeypatch.setattr(order_module, "FLOAT32_MAX_INFLATION", 0)
    assert torch.equal(order.costs, removal_order(H, W, units, damping=damping).costs)


@pytest.mark.parametrize("u", [1, 4])
def test_gradients_weigh_the_order(u):
    r, d = 14, 32
    rng = np.random.default_rng(3)
    B = rng.standard_normal((40, r)) * np.logspace(0, -2, r)
    S = torch.from_numpy(B.T @ B / 40)
    H, W = second_moment(d, "plain"), weight(r, d)
    units = torch.arange(d).view(-1, u)
    order = removal_order(H, W, units, gradients=S)
    assert_matches(order, damp_(H.clone(), DAMPING), W, units, S)
    assert not torch.equal(order.units, removal_order(H, W, units).units)


@pytest.mark.parametrize(("u", "dead", "first"), [(1, [3, 10, 17], [3, 10, 17]), (4, [0, 8, 9, 10, 11], [2])])
def test_dead_inputs_go_first_by_index_at_no_cost(u, dead, first):
    H, W, units = second_moment(24, "plain"), weight(8, 24), torch.arange(24).view(-1, u)
    H[dead] = 0
    H[:, dead] = 0
    order = removal_order(H, W, units)
    count = len(first)
    assert order.units.flip(0)[:count].tolist() == first
    assert order.costs.flip(0)[:count].tolist() == [0] * count
    assert order.costs.flip(0)[count] > 0
    W[:, dead] = 0  # what the naive form needs to see them at no cost
    assert_matches(order, damp_(H.clone(), DAMPING), W, units, exact=False)


@pytest.mark.parametrize("u", [1, 4])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["second moment", "weight", "second moment of the gradients"])
def test_not_finite(which, value, u):
    matrices = {
        "second moment": second_moment(8, "plain"),
        "weight": weight(4, 8),
        "second moment of the gradients": torch.eye(4),
    }
    matrices[which][1, 1] = value
    with pytest.raises(NumericsError, match=f"block 3 mlp: the {which} holds NaN"):
        removal_order(
            matrices["second moment"],
            matrices["weight"],
            torch.arange(8).view(-1, u),
            gradients=matrices["second moment of the gradients"],
            name="block 3 mlp",
        )


def test_not_a_second_moment(monkeypatch):
    H = torch.eye(4)
    H[0, 1] = H[1, 0] = 2
    with pytest.raises(NumericsError, match=r"block 0 attention: .* positive definite"):
        removal_order(H, torch.ones(2, 4), channels(4), name="block 0 attention")
    with pytest.raises(NumericsError, match="negative diagonal"):
        removal_order(-torch.eye(4), torch.ones(2, 4), channels(4))
    with pytest.raises(NumericsError, match="positive definite"):
        removal_order(torch.ones(4, 4), torch.ones(2, 4), channels(4), damping=0)
    lost = Mock(return_value=(torch.arange(4), torch.full((4,), torch.nan)))
    monkeypatch.setattr(order_module, "eliminate", lost)
    with pytest.raises(
        NumericsError, match=r"down_proj: the removal order lost all precision; use more calibration text"
    ):
        removal_order(torch.eye(4), torch.ones(2, 4), channels(4), name="down_proj")


def test_damp():
    H = torch.diag(torch.tensor([1.0, 0.0, 3.0]))
    H[0, 1] = H[1, 0] = 0.5  # can't come from data: a dead input has no moments
    H[0, 2] = H[2, 0] = 0.25
    damped = damp_(H.clone(), 0.03)
    torch.testing.assert_close(damped[0], torch.tensor([1.04, 0.0, 0.25]))
    torch.testing.assert_close(damped[2], torch.tensor([0.25, 0.0, 3.04]))
    assert damped[1, [0, 2]].tolist() == [0, 0]
    assert 0 < damped[1, 1] < 1e-9
    assert damped.dtype == torch.float32


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


SHAPES = [(12, 40, 40), (60, 40, 40), (1, 17, 17), (5, 1, 1), *((11, 30, p) for p in (0, 1, 13, 29, 30))]


def factors_over(H, W, columns):
    """Factors over all columns, float64."""
    L = torch.linalg.cholesky(H.double()[columns][:, columns])
    return NestedFactors(columns, L, W.double()[:, columns] @ L)


@pytest.mark.parametrize("kind", ["plain", "low rank", "steep", "outliers"])
@pytest.mark.parametrize(("r", "d", "p"), SHAPES)
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
