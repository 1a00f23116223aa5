"""Calibrate and factorise: every module at every level, block by block."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from darwinlm import parallel
from darwinlm.artifact import StageFolder
from darwinlm.calibration.hidden import HiddenMemory
from darwinlm.calibration.stream import BlockStream
from darwinlm.data import TokenBlocks
from darwinlm.database.build import build_database
from darwinlm.database.store import DatabaseReader
from darwinlm.errors import DataError
from darwinlm.run import Run
from darwinlm.stages.text import Texts


@dataclass(frozen=True)
class Database:
    """A finished database and the stage that holds it."""

    stage: StageFolder
    reader: DatabaseReader


def stream_of(run: Run, text: TokenBlocks, n_tokens: int | None = None) -> BlockStream:
    """The dense model's residual stream over some text, before the first block."""
    rows = None if n_tokens is None else -(-n_tokens // text.tokens.shape[1])
    return _stream(run, text.tokens[:rows])


def _stream(run: Run, tokens: Tensor, memory: HiddenMemory | None = None) -> BlockStream:
    return BlockStream(
        run.checkpoint, tokens, dtype=run.dtype, device=run.device, batch_tokens=run.batch_tokens, memory=memory
    )


def database_stage(run: Run, texts: Texts) -> Database:
    """Build the database, or reuse it.

    Raises:
        NumericsError: values aren't finite.
        StorageError: the disk is full.
    """
    recipe = run.recipe
    key = {
        "model": run.checkpoint.digest,
        "calibration": texts["calibration"].digest,
        "units": recipe.units.attention,
        "database": recipe.database.model_dump(),
        "arithmetic": run.arithmetic,
    }
    tokens = texts["calibration"].tokens
    if len(tokens) < parallel.size():
        raise DataError(
            f"text.calibration_tokens: {len(tokens)} blocks of text can't be shared by {parallel.size()} processes"
        )
    with run.stage("database", key, "calibration and database", shared=True) as (stage, work):
        if work:
            memory = HiddenMemory(recipe.compute.hidden_memory, stage.folder)
            with parallel.agree():
                stream = _stream(run, tokens[parallel.place() :: parallel.size()], memory)
            build_database(stage, stream, recipe.units, recipe.database.damping, progress=run.reporter.advance)
    return Database(stage, DatabaseReader(stage.folder, run.checkpoint, recipe.units))
