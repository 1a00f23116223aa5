"""A loss in pieces with gradients taken on the way there, against the same loss as a whole."""

import pytest
import torch
from torch import Tensor, nn

from darwinlm.evaluation.chunks import chunked_loss

GENERATOR = torch.Generator().manual_seed(3)
HIDDEN = torch.randn(23, 8, generator=GENERATOR)
TARGET = torch.randint(0, 31, (23,), generator=GENERATOR)


def head():
    torch.manual_seed(5)
    return nn.Linear(8, 31)


def both(chunk, *, autocast):
    """Loss and gradients in pieces, the same as a whole, and the rows of each piece that was asked for."""
    results, asked = [], []
    for pieces in (True, False):
        layer, start = head(), HIDDEN.clone().requires_grad_()

        def loss_of(rows, part, layer=layer):
            asked.append(len(part))
            return nn.functional.cross_entropy(layer(part).float(), TARGET[rows], reduction="sum")

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = torch.tanh(start)
            whole = slice(0, 23)
            loss = chunked_loss(loss_of, hidden, list(layer.parameters()), chunk) if pieces else loss_of(whole, hidden)
        (loss / 3).backward()  # as for the mean over three batches
        results.append([loss.detach(), start.grad, *(weight.grad for weight in layer.parameters())])
    return results[0], results[1], asked[:-1]


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_it_is_the_loss_of_the_whole_also_in_bfloat16(chunk):
    exact, expected, asked = both(chunk, autocast=False)
    torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-6)
    assert max(asked) == min(chunk, 23)
    assert sum(asked) == 23, "every row's logits are made once"
    found, expected, _ = both(chunk, autocast=True)
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
