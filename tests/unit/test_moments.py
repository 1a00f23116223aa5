"""Second moments added up over batches equal those of all rows at once."""

import pytest
import torch

from darwinlm.streaming import moments
from darwinlm.streaming.moments import SecondMoment
from darwinlm.surgery.projection_fit import Moments


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("panel", [4, 9, 512])
@pytest.mark.parametrize("splits", [[60], [1, 59], [20, 20, 20], [7, 13, 40]])
def test_batches_add_up(splits, panel, monkeypatch):
    monkeypatch.setattr(moments, "PANEL", panel)
    x = rows(60, 9)
    moment = SecondMoment(9)
    for part in torch.split(x, splits):
        moment.add(part)
    assert moment.count == 60
    mean = moment.take()
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), x.double().T @ x.double() / 60, rtol=1e-5, atol=1e-6)


def test_bfloat16_inputs_are_accumulated_in_float32():
    """256 + 1 is 256 in bfloat16, so a sum in bfloat16 would stay at 256."""
    x = torch.ones(1000, 2, dtype=torch.bfloat16)
    moment = SecondMoment(2)
    for part in torch.split(x, 1):
        moment.add(part)
    assert torch.equal(moment.take(), torch.ones(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_moments(dtype):
    x, y = rows(40, 7, dtype=dtype), rows(40, 3, seed=1, dtype=dtype)
    moment = SecondMoment(7, 3)
    for left, right in zip(torch.split(y, [10, 30]), torch.split(x, [10, 30]), strict=True):
        moment.add(right.view(-1, 2, 7), left.view(-1, 2, 3))
    assert moment.count == 40
    torch.testing.assert_close(moment.take().double(), y.double().T @ x.double() / 40, rtol=1e-5, atol=1e-6)


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
