"""Errors are 0 at full width and never increase with more units, whatever the inputs are; else one clear refusal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from darwinlm.database.factors import check_energy, kept_weights, nested_factors
from darwinlm.database.order import removal_order
from darwinlm.runtime.errors import NumericsError

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
    factors, errors, _ = nested_factors(H, W, order)
    assert sorted(order.tolist()) == list(range(D))
    assert bool((errors.diff() <= 0).all())
    assert float(errors[-1]) == 0.0
    assert float(errors[0]) == pytest.approx(float(((W @ H) * W).sum()), rel=1e-3)
    kept = kept_weights(factors, keep)
    whole = torch.zeros(R, D)
    whole[:, order[:keep]] = kept
    error = float((((W - whole).double() @ H.double()) * (W - whole).double()).sum())
    assert error == pytest.approx(float(errors[keep]), rel=1e-2, abs=1e-5 * float(errors[0]))


@pytest.mark.parametrize("scale", [1e-20, 1e-30, 1e-38, 1e-42, 1e20])
def test_weights_of_no_real_size_are_refused(scale):
    W = torch.randn(R, D, generator=torch.Generator().manual_seed(0)) * scale
    H = moment(torch.randn(50, D, generator=torch.Generator().manual_seed(1)))
    _, errors, _ = nested_factors(H, W, torch.arange(D))
    with pytest.raises(NumericsError, match=r"block 3 mlp: the energy of its outputs is .* scale its weights"):
        check_energy(float(errors[0]), "block 3 mlp")


def test_a_module_that_adds_nothing_is_fine():
    check_energy(0.0, "block 3 mlp")
    check_energy(1e-9, "block 3 mlp")
