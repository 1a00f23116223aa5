"""How far the model goes from the stitched weights to the refitted ones.

Each module's fit compensates all earlier error linearly, but all fits together overshoot. The best model lies between
the stitched and the fitted weights. One interpolation factor for the whole model is chosen by KL on validation text.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.stream import BlockStream, stream_of
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import read_tensors
from darwinlm.runtime.context import Context
from darwinlm.steps.database.block_files import block_file
from darwinlm.steps.refit.refit import STRENGTHS, Streams, from_owner, put_weights, refit
from darwinlm.steps.refit.refit_figures import RefitDecision, RefitRecord


def fit_and_choose(
    context: Context, dense: Checkpoint, stitched: Checkpoint, text: Tensor, held_out: Tensor, folder: Path
) -> RefitRecord:
    """Fit the stitched model towards the dense one, and choose how far to go.

    `text` and `held_out` are [n, t] tokens of all processes. The fitted weights are written to `folder`.

    Returns the record: KL to the dense model on `held_out` before, after and by interpolation factor, the chosen factor
    (`strength`), and how many of the modules were fitted.
    """
    memory = HiddenMemory(folder)
    share = slice(parallel.place(), None, parallel.size())
    text, held_out = text[share], held_out[share]
    large, small = (partial(stream_of, context, checkpoint) for checkpoint in (dense, stitched))
    with parallel.agree():
        fit = Streams(large(text, memory), small(text, memory))
        held = Streams(large(held_out, memory, beside=fit.dense), small(held_out, memory, beside=fit.small))
    ridges = refit(folder, fit, held, progress=context.reporter.advance)
    losses = {1.0: stream_divergence(held.dense, held.small)}
    dense_stream = held.dense
    del fit, held  # their memory is for the streams of the other models
    others = sorted({0.0, *STRENGTHS} - losses.keys())
    with parallel.agree():
        first = small(held_out, memory)
        first.decoder.share(parallel.owner)
        between = [first, *(small(held_out, memory, beside=first) for _ in others[1:])]
        for block, *_ in zip(*(stream.walk() for stream in between), strict=True):
            context.reporter.advance(block, stitched.n_blocks)
            for strength, stream in zip(others, between, strict=True):
                weights = partial(interpolated, folder, stitched, block, strength)
                put_weights(stream.decoder.blocks[block], from_owner(block, weights, context.device))
                stream.run(block)
    with dense_stream.decoder.with_head(), first.decoder.with_head(dense_stream.decoder):  # read once for all
        for strength, stream in zip(others, between, strict=True):
            losses[strength] = stream_divergence(dense_stream, stream)
    fitted = sum(ridge is not None for ridge in ridges)
    return {"fitted": fitted, "modules": len(ridges), **_decision(losses)}


def interpolated(folder: Path, checkpoint: Checkpoint, block: int, strength: float) -> dict[str, Tensor]:
    """Weights of a block interpolated between the stitched (0) and the fitted ones (1), float32 by name in it."""
    path = folder / block_file(block)
    if strength == 0 or not path.exists():
        return {}
    fitted = read_tensors(path)
    if strength == 1:
        return fitted
    prefix = checkpoint.block_prefix(block)
    stitched = {name: checkpoint.read(prefix + name, dtype=torch.float32)[""] for name in fitted}
    return {name: torch.lerp(stitched[name], weight, strength) for name, weight in fitted.items()}


@torch.no_grad()
def stream_divergence(dense: BlockStream, other: BlockStream) -> float:
    """Distance of a model to the dense one, from residual streams after the last block on the same text.

    Of a language model it is KL(dense ‖ other) in nats per token.

    Processes share the text; all get the same figure.
    """
    sums, objective = torch.zeros(2, dtype=torch.float64), objective_of(dense.checkpoint)
    with dense.decoder.with_head(), other.decoder.with_head(dense.decoder):
        for before, after, batch in zip(dense.hidden, other.hidden, dense.batches, strict=True):
            for part in objective.compared(dense.decoder, other.decoder, (before, after), batch):
                sums += torch.tensor(part, dtype=torch.float64)
    total, tokens = map(float, parallel.all_reduce(sums))
    return max(total / tokens, 0.0)


def _decision(losses: dict[float, float]) -> RefitDecision:
    """The decision, from KL on validation text by interpolation factor; 0 is the stitched model."""
    strength = min(sorted(losses), key=losses.__getitem__)
    return {
        "kept": "refit" if strength > 0 else "stitched",
        "strength": strength,
        "kl_before": losses[0.0],
        "kl_after": min(loss for strength, loss in losses.items() if strength > 0),
        "kl_by_strength": {f"{strength:g}": losses[strength] for strength in sorted(losses)},
    }
