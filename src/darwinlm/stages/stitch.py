"""Stitch: the physically smaller model of the allocation, as a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.run import Run
from darwinlm.runtime.artifact import StageFolder
from darwinlm.stages.database import PruningDatabase
from darwinlm.stages.search import SearchResult
from darwinlm.surgery.stitch import stitch


@dataclass(frozen=True)
class Stitched:
    """The smaller model before any correction."""

    stage: StageFolder
    checkpoint: Checkpoint

    def model(self) -> Any:
        """The model in memory, float32."""
        return self.checkpoint.load(torch.float32)


def stitch_stage(run: Run, database: PruningDatabase, search: SearchResult) -> Stitched:
    """Build and save the smaller model in the dense checkpoint's element types. Raises StorageError."""
    key = {"database": database.stage.digest, "allocation": search.allocation}
    with run.stage("stitch", key, "stitch") as (stage, work):
        if work:
            save_model(stitch(database.reader, search.allocation), stage.folder / "model")
    database.reader.release()  # the factors of the search; later stages need the memory
    return Stitched(stage, Checkpoint.open(stage.folder / "model"))
