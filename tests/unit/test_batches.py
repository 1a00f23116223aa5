"""Micro-batches of a training: their order, and reading ahead."""

from __future__ import annotations

import threading

import pytest
import torch
from torch.utils.data import Dataset

from darwinlm.recovery.schedule import Steps
from darwinlm.recovery.train import Batches


class Numbers(Dataset):
    """Blocks that hold their own number; it notes which were read, and can wait or fail."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.go, self.fails = threading.Event(), False
        self.go.set()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, block: int) -> dict[str, torch.Tensor]:
        assert self.go.wait(10)
        if self.fails:
            raise OSError("the disk is gone")
        self.read.append(block)
        return {"input_ids": torch.tensor([block])}


STEPS = Steps(count=6, per_epoch=3, accumulation=2, rows=2, step_rows=4, length=1)


def order(epoch: int) -> list[int]:
    return torch.randperm(12, generator=torch.Generator().manual_seed(7 + epoch)).tolist()


def test_each_epoch_has_its_order_and_nothing_is_read_twice():
    text = Numbers()
    batches = Batches(text, STEPS, seed=7)
    found = [batches.get(step, number)["input_ids"].flatten().tolist() for step in range(6) for number in range(2)]
    assert [row for rows in found for row in rows] == order(0) + order(1) == text.read


def test_a_batch_is_read_while_the_one_before_it_is_in_use():
    text = Numbers()
    batches = Batches(text, STEPS, seed=7)
    batches.get(2, 1)  # as after resuming
    batches._ahead[3, 0].result(10)
    assert text.read == order(0)[10:] + order(1)[:2]
    text.go.clear()
    batches.get(3, 0)  # was read before
    text.fails = True
    text.go.set()
    with pytest.raises(OSError, match="the disk is gone"):
        batches.get(3, 1)


def test_nothing_is_read_beyond_the_last_step():
    text = Numbers()
    batches = Batches(text, STEPS, seed=7)
    batches.get(5, 1)
    assert not batches._ahead
