"""The inverse from a Cholesky factor against NumPy's, its operations, and its memory on a GPU."""

import numpy as np
import pytest
import torch
from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from darwinlm.steps.database import inverse, order
from darwinlm.steps.database.factors import whole_factor_
from darwinlm.steps.database.inverse import inverse_

PANEL = 8


@pytest.fixture(autouse=True)
def small_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverse, "PANEL", PANEL)


def moment(d: int, decades: float = 1.0) -> Tensor:
    """A second moment with a spectrum over some decades."""
    rng = np.random.default_rng(d)
    Q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return torch.from_numpy((Q * np.logspace(0, -decades, d)) @ Q.T)


@pytest.mark.parametrize("decades", [0, 1, 6])
@pytest.mark.parametrize("d", [1, 7, 8, 9, 16, 61])
@pytest.mark.parametrize("by_columns", [True, False])
def test_it_is_the_inverse(d, decades, by_columns):
    H = moment(d, decades)
    L = torch.linalg.cholesky(H)
    room = L.mT.contiguous().mT if by_columns else L.contiguous()
    room += torch.full((d, d), 3.0).triu(1)  # what lies above the diagonal isn't read
    found = inverse_(room)
    assert found.data_ptr() == room.data_ptr()
    expected = np.linalg.inv(H.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-13 * 10**decades * np.abs(expected).max())
    assert torch.equal(found, found.mT)


def test_zeros_are_left_out():
    d = 32 * PANEL
    with FlopCounterMode(display=False) as counter:
        inverse_(torch.linalg.cholesky(moment(d)))
    assert counter.get_total_flops() < 0.8 * d**3, "two products of whole matrices would take 4 d³"


def test_zeros_of_a_factor_are_left_out(monkeypatch):
    d, r = 256, 24
    monkeypatch.setattr("darwinlm.steps.database.factors.COLUMNS", 16)
    with FlopCounterMode(display=False) as counter:
        whole_factor_(moment(d), torch.ones(r, d), torch.arange(d))
    assert counter.get_total_flops() < 1.1 * r * d**2, "a product with a whole matrix would take 2 r d²"


def test_on_a_gpu_it_takes_two_panels_and_no_wait():
    d = 32 * PANEL
    with pretend_gpu() as gpu:
        L = torch.linalg.cholesky(moment(d)).to(NAME)
        before = gpu.allocated
        gpu.restart()
        inverse_(L)
        tally, peak = gpu.restart()
    assert peak - before <= 2.5 * PANEL * d * 8
    assert not tally.waits
    assert not tally.uploads


def test_the_order_uses_it(monkeypatch):
    called = []
    monkeypatch.setattr(order, "inverse_", lambda L: called.append(len(L)) or inverse_(L))
    order.removal_order(moment(20), torch.ones(3, 20), torch.arange(20)[:, None])
    assert called == [20]
