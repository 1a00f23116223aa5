"""Refit: output projections corrected towards the dense residual stream, as far as the whole model improves.

Each module's fit compensates all earlier error linearly, but all fits together overshoot. The best model lies between
the stitched and the fitted weights. One interpolation factor for the whole model is chosen by KL on validation text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.database.blocks import block_file
from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.run import Run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, read_json, read_tensors, write_json
from darwinlm.stages.database import stream_of
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import Texts
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.stream import BlockStream
from darwinlm.surgery.refit import Streams, put_weights, refit

RECORD = "record.json"
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""Candidate factors of interpolation from the stitched to the fitted weights; 50 % is usually the best, see
docs/notebook/training.md."""
HEAD_TOKENS = 512
"""Tokens whose logits are in memory at once, in whole sequences."""


@dataclass(frozen=True)
class Refitted:
    """Result of the refit: a decision for each module.

    The record holds the KL to the dense model on validation text before, after and by interpolation factor, and the
    chosen factor (`strength`).
    """

    stage: StageFolder
    stitched: Stitched
    choices: list[dict[str, Any]]
    record: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        """The corrected weights by tensor name, float32; empty if the stitched model was better."""
        corrected: dict[str, Tensor] = {}
        if self.record["kept"] == "stitched":
            return corrected
        checkpoint = self.stitched.checkpoint
        for block in range(checkpoint.n_blocks):
            weights = _interpolated(self.stage.folder, checkpoint, block, self.record["strength"])
            corrected |= {checkpoint.block_prefix(block) + name: weight for name, weight in weights.items()}
        return corrected

    def model(self) -> Any:
        """The corrected model in memory, float32."""
        model = self.stitched.model()
        parameters = dict(model.named_parameters())
        for name, weight in self.weights().items():
            parameters[name].data = weight
        return model


def refit_stage(run: Run, texts: Texts, stitched: Stitched) -> Refitted | None:
    """Refit the stitched model; None if the recipe skips it.

    Raises:
        NumericsError: Values aren't finite.
        StorageError: The disk is full.
    """
    tokens = run.recipe.refit.tokens
    if not tokens:
        return None
    key = {
        "stitched": stitched.stage.digest,
        "calibration": texts["calibration"].digest,
        "validation": texts["validation"].digest,
        "tokens": tokens,
        "arithmetic": run.arithmetic,
    }
    small = partial(stream_of, run, checkpoint=stitched.checkpoint)
    with run.stage("refit", key, "refit", shared=True) as (stage, work):
        if work:
            memory = HiddenMemory(stage.folder)
            share = slice(parallel.place(), None, parallel.size())
            text, held_out = texts["calibration"].tokens, texts["validation"].tokens[share]
            text = text[: -(-tokens // text.shape[1])][share]
            with parallel.agree():
                fit = Streams(stream_of(run, text, memory), small(text, memory))
                validation = Streams(stream_of(run, held_out, memory), small(held_out, memory))
            choices = refit(stage, fit, validation, progress=run.reporter.advance)
            losses = {1.0: stream_divergence(validation.dense, validation.small)}
            for strength in sorted({0.0, *STRENGTHS} - losses.keys()):
                with parallel.agree():
                    between = small(held_out, memory)
                    run_through(between, partial(_interpolated, stage.folder, stitched.checkpoint, strength=strength))
                losses[strength] = stream_divergence(validation.dense, between)
            summed_up = _record(losses)
            fitted = sum(choice.ridge is not None for choice in choices)
            improved = summed_up["kept"] == "refit"
            far = f", interpolation {summed_up['strength']:.0%}" if improved else ""
            run.reporter.say(
                f"refit: {fitted} of {len(choices)} modules fitted{far}; KL on validation text "
                f"{summed_up['kl_before']:.3f} -> {summed_up['kl_after']:.3f}"
                + ("" if improved else ": no improvement, so the stitched weights are kept")
            )
            parallel.in_main(write_json, stage.folder / "choices.json", [asdict(choice) for choice in choices])
            parallel.in_main(write_json, stage.folder / RECORD, summed_up)
        decisions, record = read_json(stage.folder / "choices.json"), read_json(stage.folder / RECORD)
    return Refitted(stage, stitched, decisions, record)


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


def run_through(stream: BlockStream, weights: Callable[[int], dict[str, Tensor]] = lambda block: {}) -> None:
    """Move a residual stream through all blocks, with replaced weights by name in a block. Raises NumericsError."""
    for block in range(stream.checkpoint.n_blocks):
        stream.load(block)
        put_weights(stream.decoder.blocks[block], weights(block))
        stream.run(block)
        stream.unload(block)


@torch.no_grad()
def stream_divergence(dense: BlockStream, other: BlockStream) -> float:
    """KL(dense ‖ other) in nats per token, from residual streams after the last block on the same text.

    Processes share the text; all get the same figure. The dense model's head stays loaded.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for stream in (dense, other):
        stream.load_head()
    for index, hidden in enumerate(dense.hidden):
        step = max(1, HEAD_TOKENS // hidden.shape[1])
        for start in range(0, len(hidden), step):
            part = slice(start, start + step)
            reference = DenseDistribution(_logits(dense, hidden[part]))
            divergence = reference.kl(_logits(other, other.hidden[index][part]))
            sums += torch.tensor([float(divergence.sum(dtype=torch.float64)), len(reference)], dtype=torch.float64)
    other.unload_head()
    total, tokens = map(float, parallel.all_reduce(sums))
    return max(total / tokens, 0.0)


def _logits(stream: BlockStream, hidden: Tensor) -> Tensor:
    """Logits of residual streams, [b, t, m] -> [b t, v]."""
    tokens = torch.zeros(hidden.shape[:2], dtype=torch.int64)
    return stream.decoder.logits(tokens, hidden, stream.checkpoint.n_blocks).flatten(0, 1)


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
