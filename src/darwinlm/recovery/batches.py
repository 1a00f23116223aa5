"""Micro-batches of a training, each read while the one before it is computed."""

from __future__ import annotations

from collections.abc import Sized
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from darwinlm import parallel
from darwinlm.recovery.schedule import Steps


class Batches:
    """Micro-batches of this process.

    Args:
        text: One epoch.
        steps: Its division into steps.
        seed: Seed of the order, which differs between epochs.
    """

    def __init__(self, text: Dataset[dict[str, Tensor]], steps: Steps, seed: int) -> None:
        self.text, self.steps, self.seed = text, steps, seed
        self._reader = ThreadPoolExecutor(1)
        self._ahead: dict[tuple[int, int], Future[dict[str, Tensor]]] = {}
        self._order: tuple[int, Tensor] | None = None

    def get(self, step: int, number: int) -> dict[str, Tensor]:
        """Micro-batch `number` of a step in main memory; starts to read the one after it."""
        coming = self._ahead.pop((step, number), None) or self._reader.submit(self._read, step, number)
        following = (step, number + 1) if number + 1 < self.steps.accumulation else (step + 1, 0)
        self._ahead.clear()
        if following[0] < self.steps.count:
            self._ahead[following] = self._reader.submit(self._read, *following)
        return coming.result()

    def _read(self, step: int, number: int) -> dict[str, Tensor]:
        epoch, place = divmod(step, self.steps.per_epoch)
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._order = epoch, torch.randperm(len(cast(Sized, self.text)), generator=generator)
        begin = place * self.steps.step_rows + (number * parallel.size() + parallel.rank()) * self.steps.rows
        rows = self._order[1][begin : begin + self.steps.rows].tolist()
        batch: dict[str, Tensor] = default_collate([self.text[row] for row in rows])
        return batch
