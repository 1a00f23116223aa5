"""The dense model of a run: opened by its name, and loaded as a whole."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from darwinlm.formats.resolve import is_converted, memory_to_read, resolve_model
from darwinlm.model.families.checkpoint import GENERATION_SETTINGS, Checkpoint
from darwinlm.model.families.stored import tensors_in
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import size
from darwinlm.runtime.context import Context
from darwinlm.runtime.mapped import in_file
from darwinlm.runtime.memory import memory_of
from darwinlm.runtime.output import guarded
from darwinlm.runtime.reads import note
from darwinlm.runtime.step import Cost, Task
from darwinlm.steps.workload import Workload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STORED = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""Names of types in safetensors."""
CONVERSION = "model"
"""Name of the conversion of a GGUF file, in plans and in the terminal."""
PER_TOKEN, PER_WEIGHT = 3e-5, 2e-8
"""Seconds of that conversion for each token of the vocabulary and for each weight, measured on 2026-12-03."""


def open_model(context: Context, model: str | None) -> Checkpoint:
    """A model by its name in a recipe; a GGUF file is dequantised into a folder of the run first.

    Raises ModelError, CheckpointError, FamilyError.
    """
    assert model is not None
    folder = context.path("source")
    with parallel.main_first():
        if not is_converted(model):
            return resolve_model(model, folder)
        with guarded(folder), context.reporter.stage(CONVERSION):
            return resolve_model(model, folder, say=context.reporter.say)


def conversion_cost(load: Workload) -> Cost | None:
    """Time, memory and disk space of the conversion of a GGUF file; None for other models."""
    source = load.sizes.checkpoint.source
    if not is_converted(source):
        return None
    memory = memory_to_read(source) if load.on_cpu else 0.0
    sizes = load.sizes
    seconds = PER_TOKEN * sizes.rows + PER_WEIGHT * sizes.original_params
    return Cost(0, {"a tensor in float32": memory}, disk=sizes.original_params * sizes.stored, python=seconds)


def load_whole(task: Task, checkpoint: Checkpoint) -> PreTrainedModel:
    """A whole model that generates, on the run's device.

    On a CPU its weights lie in mapped files, which aren't counted as used.
    """
    note(checkpoint, GENERATION_SETTINGS)
    context, keep = task.context, partial(in_file, folder=task.folder)
    shards = {checkpoint.folder / shard for shard in checkpoint.stored.shards.values()}
    kinds = {kind for shard in shards for kind, _ in tensors_in(shard).values()}
    if context.device.type != "cpu" or kinds == {STORED[context.dtype]}:
        return checkpoint.load(context.dtype, context.device)
    return checkpoint.load(context.dtype, keep=keep)


def why_not_whole(task: Task, params: int) -> str:
    """Why whole models of `params` parameters don't fit into their half of a GPU's memory; empty if they do."""
    device, needed = task.context.device, params * task.context.dtype.itemsize
    room = min(parallel.gather(memory_of(device).room("whole models")))
    if device.type == "cpu" or needed <= room:
        return ""
    return f"whole models need {size(needed)}, and {size(room)} are for them"
