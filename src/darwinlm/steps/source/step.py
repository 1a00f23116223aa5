"""The dense model of a run, and for a recovery alone, the same with the tokens of the smaller one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from darwinlm.formats.resolve import resolve_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.stored import tensors_in
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import size
from darwinlm.runtime.context import Context
from darwinlm.runtime.mapped import in_file
from darwinlm.runtime.memory import memory_of
from darwinlm.runtime.output import guarded
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.vocabulary.cut import cut_weights, rows_in

STORED = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""Names of types in safetensors."""


def open_model(context: Context, model: str | None) -> Checkpoint:
    """A model by its name in a recipe; a GGUF file is dequantised into a folder of the run first.

    Raises ModelError, CheckpointError, FamilyError.
    """
    assert model is not None
    folder = context.path("source")
    with parallel.main_first():
        if Path(model).suffix != ".gguf":
            return resolve_model(model, folder)
        with guarded(folder), context.reporter.stage("model"):
            return resolve_model(model, folder, say=context.reporter.say)


def load_whole(task: Task, checkpoint: Checkpoint) -> Any:
    """A whole model on the run's device. On a CPU its weights lie in mapped files, which aren't counted as used."""
    context, keep = task.context, partial(in_file, folder=task.folder)
    shards = {checkpoint.folder / shard for shard in checkpoint.stored.shards.values()}
    kinds = {kind for shard in shards for kind, _ in tensors_in(shard).values()}
    if context.device.type != "cpu" or kinds == {STORED[context.dtype]}:
        return checkpoint.load(context.dtype, context.device)
    return checkpoint.load(context.dtype, keep=keep)


def why_not_whole(task: Task, params: int) -> str:
    """Why a GPU doesn't hold whole models of so many parameters, for which half of its memory is; empty if it does."""
    device, needed = task.context.device, params * task.context.dtype.itemsize
    room = min(parallel.gather(memory_of(device).room("whole models")))
    fits = device.type == "cpu" or needed <= room
    return "" if fits else f"whole models need {size(needed)}, and {size(room)} are for them"


def cut_to(task: Task, original: Checkpoint, dense: Checkpoint) -> None:
    """Write the original model with the tokens of a smaller one, unless it has all of these and more rows."""
    tokenizers = dense.tokenizer(), original.tokenizer()
    rows = rows_in(*tokenizers, int(dense.config.vocab_size), int(original.config.vocab_size))
    if rows is not None:
        cut_weights(original, rows, task.folder / "model")
        tokenizers[0].save_pretrained(task.folder / "model")


def read_cut(task: Task, original: Checkpoint) -> Checkpoint:
    """The model that `cut_to` wrote, or the unchanged one."""
    cut = task.folder / "model"
    return Checkpoint.open(cut, original.source) if cut.is_dir() else original


TEACHER = Stage(
    "teacher", cut_to, read_cut, title="dense model", writes="the original model with the tokens of the dense one"
)
"""The original model with the tokens of the dense one."""
