"""Properties for every second moment, weight and choice of units."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from darwinlm.database.factors import nested_factors
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


def slack(problem, errors):
    """Rounding of an error, relative to its total or to the level that `damp` gives dead inputs."""
    return 1e-6 * float(errors[0]) + 1e-20 * float(problem[1].square().sum())


def solve(problem, **options):
    H, W, units = problem
    order = removal_order(H, W, units, **options)
    return order, nested_factors(damp(H), W, order.columns(units))[1]


@settings(deadline=None, max_examples=60)
@given(problems())
def test_costs_are_the_steps_of_the_error(problem):
    order, errors = solve(problem)
    steps = errors[:: problem[2].shape[1]].diff().neg()
    torch.testing.assert_close(order.costs, steps, rtol=1e-3, atol=slack(problem, errors))
    assert sorted(order.units.tolist()) == list(range(len(problem[2])))
    assert (order.costs >= 0).all()


@settings(deadline=None, max_examples=60)
@given(problems())
def test_no_other_unit_was_cheaper(problem):
    """At every level, dropping any other kept unit leaves an error that is no smaller."""
    H, W, units = problem
    order, errors = solve(problem)
    metric, u = damp(H).double(), units.shape[1]
    alive = (~(H.diagonal() == 0)).double()
    WH = (W * alive) @ metric
    for level in range(1, len(units) + 1):
        kept = order.units[:level]
        for out in kept.tolist():
            rest = units[[g for g in kept.tolist() if g != out]].reshape(-1)
            explained = (torch.linalg.solve(metric[rest][:, rest], WH[:, rest].T) * WH[:, rest].T).sum()
            error = ((W * alive) * WH).sum() - explained
            assert error >= errors[(level - 1) * u] * (1 - 1e-4) - slack(problem, errors)
