"""Removal order, compared with column-by-column Optimal Brain Surgeon with explicit inverse and weights."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from darwinlm.database import order as order_module
from darwinlm.database.order import damp_, removal_order
from darwinlm.runtime.errors import NumericsError

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
def test_ill_conditioned_runs_in_float64(kind, u):
    d, damping = 48, 1e-6
    H, W = second_moment(d, kind), weight(16, d)
    units = torch.arange(d).view(-1, u)
    order = removal_order(H, W, units, damping=damping)
    assert_matches(order, damp_(H.clone(), damping), W, units, exact=False)
    assert torch.equal(order.costs, removal_order(H, W, units, damping=damping, dtype=torch.float64).costs)


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
