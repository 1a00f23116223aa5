"""The removal loop on a GPU: the CPU's order, without waits."""

import pytest
import torch
from torch import Tensor

from darwinlm.database.elimination import eliminate
from tests.gpu.rules import NAME

BLOCK = 16


def matrices(d: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X, W = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (3 * d, d // 2))
    X *= torch.linspace(0.5, 2, d, dtype=torch.float64)
    return torch.linalg.inv(X.T @ X / len(X)).mT.contiguous().to(dtype), (W.T @ W).to(dtype)


def on(device: str, C: Tensor, G: Tensor, n: int) -> tuple[Tensor, Tensor]:
    picks, costs = eliminate(C.clone().to(device), G.clone().to(device), n, BLOCK)
    return picks.cpu(), costs.cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "n"), [(1, 1), (2, 2), (17, 17), (96, 96), (96, 8)])
def test_it_is_the_order_of_the_cpu(gpu, d, n, dtype):
    C, G = matrices(d, dtype)
    expected, costs = on("cpu", C, G, n)
    picks, found = on(NAME, C, G, n)
    assert torch.equal(picks, expected)
    torch.testing.assert_close(found, costs, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-12)


def test_a_step_waits_for_nothing(gpu):
    C, G = (tensor.to(NAME) for tensor in matrices(120))
    gpu.restart()
    eliminate(C, G, 120, BLOCK)
    found = gpu.tally.inside("database/elimination.py")
    assert found["kernels"] < 32 * 120
    assert found["waits"] <= 120 // BLOCK, "only where removed columns are dropped"
    assert found["uploads"] == 0
