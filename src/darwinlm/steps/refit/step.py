"""Refit: output projections corrected towards the dense residual stream, as far as the whole model improves.

Each module's fit compensates all earlier error linearly, but all fits together overshoot. The best model lies between
the stitched and the fitted weights. One interpolation factor for the whole model is chosen by KL on validation text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.model.divergence import DenseDistribution
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.stream import BlockStream
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import read_record, read_tensors, write_json
from darwinlm.runtime.compute import exact
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.database.block_files import block_file
from darwinlm.steps.database.step import stream_of
from darwinlm.steps.refit.refit import STRENGTHS, Streams, put_weights, refit
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.text.sequences import TokenSequences

RECORD = "record.json"


@dataclass(frozen=True)
class Refitted:
    """Result of the refit.

    The record holds the KL to the dense model on validation text before, after and by interpolation factor, the chosen
    factor (`strength`), and how many of the modules were fitted.
    """

    folder: Path
    stitched: Stitched
    record: dict[str, Any]

    @property
    def checkpoint(self) -> Checkpoint:
        """The model before the correction."""
        return self.stitched.checkpoint

    def block(self, block: int) -> dict[str, Tensor]:
        """Weights of a block of the corrected model by name in it."""
        checkpoint = self.stitched.checkpoint
        stored = checkpoint.read(checkpoint.block_prefix(block))
        if self.record["kept"] == "stitched":
            return stored
        return stored | _interpolated(self.folder, checkpoint, block, self.record["strength"])

    def model(self, dtype: torch.dtype = torch.float32, **how: Any) -> Any:
        """The corrected model; `how` it is loaded is for `Checkpoint.load`."""
        return self.stitched.checkpoint.load(dtype, weights=self.block, **how)


def _refit(
    task: Task, stitch: Stitched, dense: Checkpoint, calibration: TokenSequences, validation: TokenSequences
) -> None:
    """Fit the stitched model towards the dense one, and choose how far to go."""
    context, memory = task.context, HiddenMemory(task.folder)
    share = slice(parallel.place(), None, parallel.size())
    text, held_out = calibration.first(task.recipe.refit.tokens).tokens[share], validation.tokens[share]
    large, small = (partial(stream_of, context, each) for each in (dense, stitch.checkpoint))
    with parallel.agree():
        fit = Streams(large(text, memory), small(text, memory))
        held = Streams(large(held_out, memory), small(held_out, memory))
    ridges = refit(task.folder, fit, held, progress=context.reporter.advance)
    losses = {1.0: stream_divergence(held.dense, held.small)}
    others = sorted({0.0, *STRENGTHS} - losses.keys())
    for number, strength in enumerate(others):
        context.reporter.advance(number, len(others))
        with parallel.agree():
            between = small(held_out, memory)
            for block in between.walk():
                weights = _interpolated(task.folder, between.checkpoint, block, strength)
                put_weights(between.decoder.blocks[block], weights)
                between.run(block)
        losses[strength] = stream_divergence(held.dense, between)
    fitted = sum(ridge is not None for ridge in ridges)
    summed_up = {"fitted": fitted, "modules": len(ridges), **_record(losses)}
    improved = summed_up["kept"] == "refit"
    far = f", interpolation {summed_up['strength']:.0%}" if improved else ""
    context.reporter.say(
        f"refit: {fitted} of {len(ridges)} modules fitted{far}; KL on validation text "
        f"{summed_up['kl_before']:.3f} -> {summed_up['kl_after']:.3f}"
        + ("" if improved else ": no improvement, so the stitched weights are kept")
    )
    parallel.in_main(write_json, task.folder / RECORD, summed_up)


REFIT = Stage(
    "refit",
    _refit,
    lambda task, stitch: Refitted(task.folder, stitch, read_record(task.folder / RECORD)),
    version=5,
    writes="corrected output projections",
    settings=("refit.tokens",),
    arithmetic=True,
    together=True,
)


def _interpolated(folder: Path, checkpoint: Checkpoint, block: int, strength: float) -> dict[str, Tensor]:
    """Weights of a block interpolated between the stitched (0) and the fitted ones (1), float32 by name in it."""
    path = folder / block_file(block)
    if strength == 0 or not path.exists():
        return {}
    fitted = read_tensors(path)
    if strength == 1:
        return fitted
    stitched = checkpoint.read(checkpoint.block_prefix(block), dtype=torch.float32)
    return {name: torch.lerp(stitched[name], weight, strength) for name, weight in fitted.items()}


@torch.no_grad()
def stream_divergence(dense: BlockStream, other: BlockStream) -> float:
    """KL(dense ‖ other) in nats per token, from residual streams after the last block on the same text.

    Processes share the text; all get the same figure.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    with dense.decoder.with_head(), other.decoder.with_head(dense.decoder):
        for both in zip(dense.hidden, other.hidden, strict=True):
            pieces = (torch.split(hidden.flatten(0, 1), dense.decoder.head_tokens) for hidden in both)
            for states, others in zip(*pieces, strict=True):
                divergence = DenseDistribution(dense.decoder.head(states)).kl(other.decoder.head(others))
                summed = exact(divergence).sum(dtype=torch.float64)
                sums += torch.tensor([float(summed), len(divergence)], dtype=torch.float64)
    total, tokens = map(float, parallel.all_reduce(sums))
    return max(total / tokens, 0.0)


def _record(losses: dict[float, float]) -> dict[str, Any]:
    """The decision, from KL on validation text by interpolation factor; 0 is the stitched model."""
    strength = min(sorted(losses), key=losses.__getitem__)
    return {
        "kept": "refit" if strength > 0 else "stitched",
        "strength": strength,
        "kl_before": losses[0.0],
        "kl_after": min(loss for each, loss in losses.items() if each > 0),
        "kl_by_strength": {f"{each:g}": losses[each] for each in sorted(losses)},
    }
