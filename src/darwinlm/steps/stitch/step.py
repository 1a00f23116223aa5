"""Stitch: the physically smaller model of the allocation, as a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.mapped import in_file
from darwinlm.runtime.memory import ALL
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.database.step import PruningDatabase
from darwinlm.steps.search.step import SearchResult
from darwinlm.steps.stitch.stitch import stitch


@dataclass(frozen=True)
class Stitched:
    """The smaller model before any correction, or any other model that a refit or a recovery starts from."""

    checkpoint: Checkpoint

    @property
    def digest(self) -> str:
        """Hash of its weights and configuration."""
        return self.checkpoint.digest

    def model(self, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
        """The model; `how` it is loaded is for `Checkpoint.load`."""
        return self.checkpoint.load(dtype, **how)


def _stitch(task: Task, database: PruningDatabase, search: SearchResult) -> None:
    """Build and save the smaller model in the dense checkpoint's element types. Raises StorageError."""
    place = partial(in_file, folder=task.folder)
    save_model(stitch(database.reader, search.allocation, place), task.folder / "model")


def _read(task: Task, database: PruningDatabase) -> Stitched:
    database.reader.release(ALL)  # the factors of the search; later stages need the memory
    return Stitched(Checkpoint.open(task.folder / "model"))


STITCH = Stage("stitch", _stitch, _read, version=3, writes="the smaller model")
