"""Second moments added up over batches equal those of all rows at once."""

import pytest
import torch

from darwinlm.calibration import moments
from darwinlm.calibration.moments import SecondMoment


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("splits", [[60], [1, 59], [20, 20, 20], [7, 13, 40]])
def test_batches_add_up(splits):
    x = rows(60, 9)
    moment = SecondMoment(9)
    for part in torch.split(x, splits):
        moment.add(part)
    assert moment.count == 60
    mean = moment.take()
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.double(), x.double().T @ x.double() / 60, rtol=1e-5, atol=1e-6)


def test_leading_dimensions_are_all_rows_however_they_lie():
    x = rows(9, 20).T
    deep, flat = SecondMoment(9), SecondMoment(9)
    deep.add(x.unflatten(0, (4, 5)))
    flat.add(x.contiguous())
    assert deep.count == flat.count == 20
    torch.testing.assert_close(deep.take(), flat.take())


def test_bfloat16_inputs_are_accumulated_in_float32():
    """256 + 1 is 256 in bfloat16, so a sum in bfloat16 would stay at 256."""
    x = torch.ones(1000, 2, dtype=torch.bfloat16)
    moment = SecondMoment(2)
    for part in torch.split(x, 1):
        moment.add(part)
    assert torch.equal(moment.take(), torch.ones(2, 2))


def test_moments_of_nothing_are_zero():
    assert torch.equal(SecondMoment(3).take(), torch.zeros(3, 3))
    assert torch.equal(SecondMoment(3, 2).take(), torch.zeros(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_moments(dtype):
    x, y = rows(40, 7, dtype=dtype), rows(40, 3, seed=1, dtype=dtype)
    moment = SecondMoment(7, 3)
    for left, right in zip(torch.split(y, [10, 30]), torch.split(x, [10, 30]), strict=True):
        moment.add(right.view(-1, 2, 7), left.view(-1, 2, 3))
    assert moment.count == 40
    torch.testing.assert_close(moment.take().double(), y.double().T @ x.double() / 40, rtol=1e-5, atol=1e-6)


def test_bfloat16_products_are_exact_in_float32(monkeypatch):
    """If a device multiplies bfloat16 into float32, inputs aren't converted and the sum is the one in float32."""
    whole, asked, x = torch.mm, [], rows(50, 6, dtype=torch.bfloat16)
    expected = SecondMoment(6)
    expected.add(x)

    def mm(left, right, out_dtype):
        asked.append((left.dtype, out_dtype))
        return whole(left.float(), right.float())

    monkeypatch.setattr(moments, "multiplies_into_float32", lambda device: True)
    monkeypatch.setattr(torch, "mm", mm)
    found = SecondMoment(6)
    found.add(x)
    found.add(x.float())
    assert asked == [(torch.bfloat16, torch.float32)]
    torch.testing.assert_close(found.take(), expected.take())
