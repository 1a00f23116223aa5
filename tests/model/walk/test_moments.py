"""Second moments added up over batches, against products of the whole."""

import pytest
import torch

from darwinlm.model.walk import moments
from darwinlm.model.walk.moments import SecondMoment


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
