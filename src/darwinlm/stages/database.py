"""Database: calibrate and factorise every module, block by block, or use a finished database."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from darwinlm.calibration.gradients import output_gradients
from darwinlm.data import TokenBlocks
from darwinlm.database.block_moments import Saliency
from darwinlm.database.blocks import block_file
from darwinlm.database.build import build_database
from darwinlm.database.elimination import why_not_recorded
from darwinlm.database.finished import TEXT, calibration_documents, check_fits, find_database
from darwinlm.database.lens import Lens
from darwinlm.database.store import DatabaseReader
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.parts import KINDS
from darwinlm.run import Run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, read_tensors, write_json, write_tensors
from darwinlm.runtime.errors import DataError
from darwinlm.runtime.memory import kept_memory
from darwinlm.stages.text import Texts
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.stream import BlockStream

GRADIENT_TOKENS, GRADIENT_SHARE = 8192, 8
"""Most calibration tokens for the gradients of the loss, and the part of the calibration text that they are: an eighth.
Measured databases have these amounts (docs/notebook/database.md)."""


@dataclass(frozen=True)
class PruningDatabase:
    """A finished database and its stage."""

    stage: StageFolder
    reader: DatabaseReader


def stream_of(
    run: Run, tokens: Tensor, memory: HiddenMemory | None = None, *, checkpoint: Checkpoint | None = None
) -> BlockStream:
    """The residual stream of a model, by default the dense one, on tokens [n, t], before the first block."""
    how: dict[str, Any] = {"dtype": run.dtype, "device": run.device, "batch_tokens": run.batch_tokens}
    return BlockStream(checkpoint or run.checkpoint, tokens, **how, memory=memory)


def database_stage(run: Run, texts: Texts) -> PruningDatabase:
    """Build the database, reuse it, or use the one named in the recipe.

    Raises:
        NumericsError: Values aren't finite.
        StorageError: The disk is full.
        ArtifactError: The database named in the recipe belongs to another model, or is damaged.
        DataError: It was calibrated on text that is now search or evaluation text.
    """
    recipe = run.recipe
    if recipe.database.folder is not None:
        with parallel.agree():
            stage = _finished_database(run, Path(recipe.database.folder), texts)
    else:
        stage = _built_database(run, texts["calibration"])
    return PruningDatabase(stage, DatabaseReader(stage.folder, run.checkpoint, recipe.units, device=run.device))


def _built_database(run: Run, text: TokenBlocks) -> StageFolder:
    recipe = run.recipe
    key = {
        "model": run.checkpoint.digest,
        "calibration": text.digest,
        "units": recipe.units.attention,
        "database": recipe.database.model_dump(exclude={"folder"}),
        "arithmetic": run.arithmetic,
    }
    if len(text.tokens) < parallel.size():
        raise DataError(
            f"text.calibration_tokens: {len(text.tokens)} sequences can't be shared by {parallel.size()} processes"
        )
    tokens = text.tokens[parallel.place() :: parallel.size()]
    weights = _saliency_stage(run, text) if recipe.database.saliency == "loss" else lambda block: {}
    with run.stage("database", key, "calibration and database", shared=True) as (stage, work):
        if work:
            memory = HiddenMemory(stage.folder)
            with parallel.agree():
                stream = stream_of(run, tokens, memory)
                mixture = run.checkpoint.family.mlp.experts is not None
                orders = Lens(partial(stream_of, run), text.tokens).order if mixture else None
            build_database(stage, stream, recipe.units, weights, orders, run.reporter.advance)
            if reason := why_not_recorded():
                run.reporter.say(
                    f"removal order: its steps can't be recorded as a CUDA graph ({reason}) and took longer, with the "
                    "same results"
                )
            about = {"source": text.source, "tokens": text.n_tokens, "documents": list(text.document_hashes)}
            parallel.in_main(write_json, stage.folder / TEXT, about)
    return stage


def gradient_tokens(calibration_tokens: int) -> int:
    """Number of calibration tokens for the gradients of the loss."""
    return min(max(calibration_tokens // GRADIENT_SHARE, 1), GRADIENT_TOKENS)


def _saliency_stage(run: Run, text: TokenBlocks) -> Saliency:
    """Second moments of output gradients on the beginning of the calibration text, a file for each block."""
    wanted = -(-gradient_tokens(text.n_tokens) // text.tokens.shape[1])
    sequences = min(max(wanted, parallel.size()), len(text.tokens))
    tokens = text.tokens[:sequences][parallel.place() :: parallel.size()]
    key = {"model": run.checkpoint.digest, "calibration": text.digest, "rows": sequences, "arithmetic": run.arithmetic}
    with run.stage("saliency", key, "output gradients", shared=True) as (stage, work):
        if work:
            memory = HiddenMemory(stage.folder)
            total = run.checkpoint.n_blocks
            with kept_memory(run.device):
                for block, moments in output_gradients(stream_of(run, tokens, memory), tokens, memory):
                    parallel.in_main(write_tensors, stage.folder / block_file(block), moments)
                    run.reporter.advance(total - block, total)
    folder, device = stage.folder, run.device

    def of_block(block: int) -> dict[str, Tensor]:
        moments = read_tensors(folder / block_file(block))
        return {kind: moments[kind].to(device) for kind in KINDS if kind in moments}

    return of_block  # type: ignore[return-value]


def _finished_database(run: Run, path: Path, texts: Texts) -> StageFolder:
    stage = find_database(path)
    model, units = run.checkpoint, run.recipe.units.attention
    check_fits(stage, path, model=model.digest, source=model.source, units=units)
    calibrated = calibration_documents(stage)
    for purpose, text in texts.items():
        shared = calibrated & set(text.document_hashes) if purpose != "calibration" else set()
        if shared:
            raise DataError(
                f"the database in {path} was calibrated on {len(shared)} documents that are now {purpose} text: use "
                "other text, or the text settings and the seed of the database"
            )
    run.reporter.say(f"calibration and database: using {path}")
    return stage
