"""Gradients of the loss, and the database: every module at every level."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.parts import KINDS
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.stream import BlockStream
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, read_tensors, write_tensors
from darwinlm.runtime.compute import exact_device
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import DataError
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.database.block_files import block_file
from darwinlm.steps.database.block_moments import OutputMoments
from darwinlm.steps.database.build import build_database
from darwinlm.steps.database.elimination import why_not_recorded
from darwinlm.steps.database.removal_metrics import find_metric
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.gradients.output_gradients import output_gradients
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.shares import gradient_tokens


def stream_of(
    context: Context, checkpoint: Checkpoint, tokens: Tensor, memory: HiddenMemory | None = None
) -> BlockStream:
    """The residual stream of a model on tokens [n, t], before the first block."""
    how: dict[str, Any] = {"dtype": context.dtype, "device": context.device, "batch_tokens": context.batch_tokens}
    return BlockStream(checkpoint, tokens, **how, memory=memory)


def _gradient_rows(calibration: TokenSequences) -> int:
    """Number of sequences for the gradients; each process needs one."""
    wanted = -(-gradient_tokens(calibration.n_tokens) // calibration.tokens.shape[1])
    return min(max(wanted, parallel.size()), len(calibration.tokens))


def _gradients(task: Task, calibration: TokenSequences, dense: Checkpoint) -> None:
    """Second moments of output gradients on the beginning of the calibration text, a file for each block."""
    context, rows = task.context, _gradient_rows(calibration)
    tokens = calibration.tokens[:rows][parallel.place() :: parallel.size()]
    memory, total = HiddenMemory(task.folder), dense.n_blocks
    stream = stream_of(context, dense, tokens, memory)
    for block, moments in output_gradients(stream, tokens, memory):
        parallel.in_main(write_tensors, task.folder / block_file(block), moments)
        context.reporter.advance(total - block, total)


def _moments_of(folder: Path, device: torch.device, block: int) -> dict[Any, Tensor]:
    """Second moments of the gradients at the outputs of a block's modules, [r, r] each, on the device."""
    moments = read_tensors(folder / block_file(block))
    return {kind: moments[kind].to(device) for kind in KINDS if kind in moments}


GRADIENTS = Stage(
    "gradients",
    _gradients,
    lambda task: partial(_moments_of, task.folder, task.context.device),
    version=5,
    title="output gradients",
    writes="second moments of output gradients",
    key=lambda task, calibration: {"rows": _gradient_rows(calibration)},
    arithmetic=True,
    together=True,
)


@dataclass(frozen=True)
class PruningDatabase:
    """A finished database and its folder."""

    stage: StageFolder
    reader: DatabaseReader

    @property
    def digest(self) -> str:
        """Hash of everything that it depends on."""
        return self.stage.digest


def _build(task: Task, dense: Checkpoint, calibration: TokenSequences, gradients: OutputMoments | None) -> None:
    """Calibrate and factorise every module, block by block."""
    context, tokens = task.context, calibration.tokens
    if len(tokens) < parallel.size():
        raise DataError(
            f"text.calibration_tokens: {len(tokens)} sequences can't be shared by {parallel.size()} processes"
        )
    memory = HiddenMemory(task.folder)
    with parallel.agree():
        stream = stream_of(context, dense, tokens[parallel.place() :: parallel.size()], memory)
    metric, weights = find_metric(task.recipe.database.metric), gradients or (lambda block: {})
    build_database(task.stage, stream, task.recipe.units, weights, context.reporter.advance, metric.order)
    if reason := why_not_recorded():
        context.reporter.say(
            f"removal order: its steps can't be recorded as a CUDA graph ({reason}) and took longer, with the same "
            "results"
        )


def _read(task: Task, dense: Checkpoint) -> PruningDatabase:
    reader = DatabaseReader(task.folder, dense, task.recipe.units, device=exact_device(task.context.device))
    return PruningDatabase(task.stage, reader)


DATABASE = Stage(
    "database",
    _build,
    _read,
    version=9,
    title="calibration and database",
    writes="order, factor and errors of every module",
    settings=("database.metric", "units.attention"),
    arithmetic=True,
    together=True,
)
"""Every module at every level."""
