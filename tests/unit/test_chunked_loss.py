"""A loss in pieces with gradients taken on the way there, against the same loss as a whole."""

import pytest
import torch
from torch import Tensor, nn

from darwinlm.evaluation.chunks import chunked_loss

GENERATOR = torch.Generator().manual_seed(3)
HIDDEN = torch.randn(23, 8, generator=GENERATOR)
TARGET = torch.randint(0, 31, (23,), generator=GENERATOR)


def head() -> nn.Linear:
    torch.manual_seed(5)
    return nn.Linear(8, 31)


def both(chunk: int, *, frozen: bool = False, autocast: bool = False) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Loss and gradients in pieces, the same as a whole, and the rows of each piece that was asked for."""
    results, asked = [], []
    for pieces in (True, False):
        layer = head().requires_grad_(not frozen)
        start = HIDDEN.clone().requires_grad_()

        def loss_of(rows: slice, part: Tensor, layer: nn.Linear = layer) -> Tensor:
            asked.append(len(part))
            return nn.functional.cross_entropy(layer(part).float(), TARGET[rows], reduction="sum")

        weights = [] if frozen else list(layer.parameters())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = torch.tanh(start)
            loss = chunked_loss(loss_of, hidden, weights, chunk) if pieces else loss_of(slice(0, 23), hidden)
        # As a Trainer does that sums up three batches.
        (loss / 3).backward()
        gradients = [tensor.grad for tensor in (start, *layer.parameters()) if tensor.requires_grad]
        results.append([loss.detach(), *(each for each in gradients if each is not None)])
    return results[0], results[1], asked[:-1]


@pytest.mark.parametrize("chunk", [1, 7, 23, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_the_loss_of_the_whole(chunk: int, *, frozen: bool):
    found, expected, asked = both(chunk, frozen=frozen)
    assert len(found) == len(expected) == (2 if frozen else 4)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    assert max(asked) == min(chunk, 23)
    assert sum(asked) == 23  # every row's logits are made once


def test_products_in_bfloat16_are_those_of_the_whole():
    found, expected, _ = both(7, autocast=True)
    exact, _, _ = both(7)
    for ours, plain, rounded in zip(found, expected, exact, strict=True):
        assert ours.dtype == plain.dtype
        # Sums over pieces are in float32, sums over all rows in bfloat16: no worse than those.
        assert (ours - rounded).norm() < 1.2 * (plain - rounded).norm() + 1e-3 * rounded.norm()


def test_without_gradients_only_the_sum_is_made():
    layer = head()
    calls: list[bool] = []

    def loss_of(rows: slice, part: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return nn.functional.cross_entropy(layer(part), TARGET[rows], reduction="sum")

    with torch.no_grad():
        found = chunked_loss(loss_of, HIDDEN, list(layer.parameters()), 10)
    torch.testing.assert_close(found, nn.functional.cross_entropy(layer(HIDDEN), TARGET, reduction="sum"))
    assert not found.requires_grad
    assert calls == [False] * 3
