"""Properties for every second moment, weight and choice of units."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darwinlm.database.factors import kept_weights, nested_factors
from darwinlm.database.order import damp, removal_order


@st.composite
def problems(draw):
    """Second moment, weight and units: some of low rank, some with dead inputs, at any scale."""
    n, u, r = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 20))
    d = n * u
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples = draw(st.integers(1, 3 * d))
    X = rng.standard_normal((samples, d)) * 10.0 ** draw(st.integers(-4, 4))
    X *= np.exp(draw(st.sampled_from([0.0, 1.0])) * rng.standard_normal(d))
    X[:, draw(st.lists(st.integers(0, d - 1), max_size=3))] = 0
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    H = torch.from_numpy(X.T @ X / samples).to(dtype)
    W = torch.from_numpy(rng.standard_normal((r, d)))
    return H, W, torch.from_numpy(rng.permutation(d)).view(n, u)


def slack(problem, factors):
    """Rounding of an error, relative to its total or to the level that `damp` gives dead inputs."""
    return 1e-6 * float(factors.errors[0]) + 1e-20 * float(problem[1].square().sum())


def solve(problem, **options):
    H, W, units = problem
    order = removal_order(H, W, units, **options)
    return order, nested_factors(damp(H), W, order.columns(units))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_costs_are_the_steps_of_the_error(problem):
    order, factors = solve(problem)
    steps = factors.errors[:: problem[2].shape[1]].diff().neg()
    torch.testing.assert_close(order.costs, steps, rtol=1e-3, atol=slack(problem, factors))
    assert sorted(order.units.tolist()) == list(range(len(problem[2])))
    assert (order.costs >= 0).all()


@settings(deadline=None, max_examples=60)
@given(problems())
def test_no_other_unit_was_cheaper(problem):
    """At every level, dropping any other kept unit leaves an error that is no smaller."""
    H, W, units = problem
    order, factors = solve(problem)
    metric, u = damp(H).double(), units.shape[1]
    alive = (~(H.diagonal() == 0)).double()
    WH = (W * alive) @ metric
    for level in range(1, len(units) + 1):
        kept = order.units[:level]
        for out in kept.tolist():
            rest = units[[g for g in kept.tolist() if g != out]].reshape(-1)
            explained = (torch.linalg.solve(metric[rest][:, rest], WH[:, rest].T) * WH[:, rest].T).sum()
            error = ((W * alive) * WH).sum() - explained
            assert error >= factors.errors[(level - 1) * u] * (1 - 1e-4) - slack(problem, factors)


@settings(deadline=None, max_examples=60)
@given(problems(), st.data())
def test_weights_leave_no_correlation(problem, data):
    """The residual of every width is orthogonal to the inputs that it kept."""
    H, W, _ = problem
    _, factors = solve(problem)
    p = data.draw(st.integers(0, W.shape[1]))
    k = data.draw(st.integers(0, p))
    factors = nested_factors(damp(H), W, factors.columns[:p])
    gap = W.clone()
    kept = factors.columns[:k]
    gap[:, kept] -= kept_weights(factors, k).double()
    metric = damp(H).double()
    root = metric.diagonal().sqrt()
    size = (gap * root).norm() + (W * root).norm()
    assert ((gap @ metric)[:, kept] / root[kept]).norm() <= 1e-4 * size
    error = torch.einsum("ri,ij,rj->", gap, metric, gap)
    torch.testing.assert_close(factors.errors[k], error, rtol=1e-3, atol=slack(problem, factors))


@settings(deadline=None, max_examples=60)
@given(problems())
def test_wider_is_never_worse(problem):
    _, factors = solve(problem)
    assert (factors.errors.diff() <= 0).all()
    assert factors.errors[-1] == 0
    total = float(torch.einsum("ri,ij,rj->", problem[1], damp(problem[0]).double(), problem[1]))
    np.testing.assert_allclose(float(factors.errors[0]), total, rtol=1e-6)
