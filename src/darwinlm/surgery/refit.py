"""Least-squares correction of a stitched model toward the dense one, block by block (DESIGN: refit).

Two residual streams walk the blocks together, the dense model's and the smaller one's. Each output projection is
fitted so that the smaller stream, with all the error that it already carries, lands where the dense stream is after
that module. The strength of the pull toward the stitched weights is chosen on validation text, and where no fit
beats the stitched weights there, they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from darwinlm.artifact import StageFolder, read_json, read_tensors, write_json, write_tensors
from darwinlm.calibration.moments import CrossMoment, SecondMoment
from darwinlm.calibration.stream import BlockStream, output_projection
from darwinlm.errors import ArtifactError
from darwinlm.families.family import KINDS, ModuleKind
from darwinlm.surgery.ridge import ridge_solution, squared_error
from darwinlm.surgery.walk import BlockWalk


@dataclass(frozen=True)
class Choice:
    """What was decided for one module.

    Attributes:
        block: its block.
        kind: attention or mlp.
        ridge: the strength that was best on validation text; None kept the stitched weights.
        before: validation error of the stitched weights, E‖y - W x‖² relative to E‖y‖².
        after: validation error of the chosen weights.
    """

    block: int
    kind: ModuleKind
    ridge: float | None
    before: float
    after: float


@dataclass
class Streams:
    """The dense and the smaller model's residual streams over the same text."""

    dense: BlockStream
    small: BlockStream


class _Moments:
    """Moments of one module's inputs and of what they should give."""

    def __init__(self, inputs: int, outputs: int, device: torch.device) -> None:
        self.inputs = SecondMoment(inputs, device)
        self.cross = CrossMoment(outputs, inputs, device)
        self.energy = 0.0
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        self.inputs.add(x)
        self.cross.add(y, x)
        self.energy += float(y.double().square().sum())
        self.count += y.numel() // y.shape[-1]

    def error(self, W: Tensor) -> float:
        energy = self.energy / self.count
        if energy == 0:
            return 0.0
        return squared_error(self.inputs.mean(), self.cross.mean(), energy, W) / energy


def refit(
    stage: StageFolder,
    fit: Streams,
    validation: Streams,
    ridges: tuple[float, ...],
    *,
    memory: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Choice]:
    """Fit every output projection of the smaller model; blocks that an interrupted run has finished are kept.

    Args:
        stage: begun; one file of weights and one of choices is written for each block.
        fit: streams over the text that is fitted, before the first block.
        validation: streams over other text, before the first block.
        ridges: strengths to try.
        memory: bytes of projection inputs that each stream may keep; what doesn't fit is computed a second time.
        progress: called with finished and total blocks.

    Returns:
        The choice for each module that is still there.

    Raises:
        NumericsError: values aren't finite.
        StorageError: the disk is full.
    """
    choices: list[Choice] = []
    total = fit.dense.checkpoint.n_blocks
    for block in range(total):
        tensors, notes = stage.folder / f"block_{block:04d}.safetensors", stage.folder / f"block_{block:04d}.json"
        for streams in (fit, validation):
            streams.small.load(block)
        if notes.exists() and _finished(stage, block):
            weights = read_tensors(tensors) if tensors.exists() else {}
            made = [Choice(**note) for note in read_json(notes)]
            for streams in (fit, validation):
                streams.dense.load(block)
                _put(streams.small, block, weights)
                streams.dense.run(block)
                streams.small.run(block)
        else:
            weights, made = _refit_block(block, fit, validation, ridges, memory)
            if weights:
                write_tensors(tensors, weights)
            write_json(notes, [asdict(choice) for choice in made])
        for streams in (fit, validation):
            streams.dense.unload(block)
            streams.small.unload(block)
        choices += made
        progress(block + 1, total)
    return choices


def _finished(stage: StageFolder, block: int) -> bool:
    tensors, notes = stage.folder / f"block_{block:04d}.safetensors", stage.folder / f"block_{block:04d}.json"
    try:
        changed = any(note["ridge"] is not None for note in read_json(notes))
        if changed:
            read_tensors(tensors)
    except ArtifactError:
        notes.unlink()
        return False
    return True


def _put(stream: BlockStream, block: int, weights: dict[str, Tensor]) -> None:
    for kind in KINDS:
        if kind in weights:
            output = output_projection(stream.decoder.blocks[block], stream.checkpoint.family, kind)
            assert output is not None
            output.weight.data = weights[kind].to(output.weight.device, output.weight.dtype)


def _refit_block(
    block: int, fit: Streams, validation: Streams, ridges: tuple[float, ...], memory: int
) -> tuple[dict[str, Tensor], list[Choice]]:
    """Advance all streams through one block, fitting its modules on the way."""
    both = (fit, validation)
    family = fit.dense.checkpoint.family
    for streams in both:
        streams.dense.load(block)
    dense = [BlockWalk(streams.dense, block, memory=0) for streams in both]
    small = [BlockWalk(streams.small, block, memory) for streams in both]
    stitched = fit.small.checkpoint.read(fit.small.checkpoint.block_prefix(block), dtype=torch.float32)
    weights: dict[str, Tensor] = {}
    choices: list[Choice] = []
    for kind in KINDS:
        for walk in dense:
            walk.finish(kind)
        output = output_projection(fit.small.decoder.blocks[block], family, kind)
        if output is not None:
            seen, held_out = (
                _moments(walk, kind, output, streams.dense.hidden) for walk, streams in zip(small, both, strict=True)
            )
            part = family.module(kind)
            W0 = stitched[f"{part.name}.{part.output}.weight"].to(fit.small.device)
            W, choice = _fitted(seen, held_out, W0, ridges, Choice(block, kind, None, 0.0, 0.0))
            choices.append(choice)
            if choice.ridge is not None:
                weights[kind] = W
                for streams in both:
                    _put(streams.small, block, {kind: W})
        for walk in small:
            walk.finish(kind)
    return weights, choices


def _fitted(
    seen: _Moments, held_out: _Moments, W0: Tensor, ridges: tuple[float, ...], module: Choice
) -> tuple[Tensor, Choice]:
    """The best weights on held-out text: the given ones or those of one of the ridges."""
    best, chosen, best_error = W0, None, held_out.error(W0)
    before = best_error
    for ridge in ridges:
        W = ridge_solution(seen.inputs.mean(), seen.cross.mean(), W0, ridge, name=f"block {module.block} {module.kind}")
        error = held_out.error(W)
        if error < best_error:
            best, chosen, best_error = W, ridge, error
    return best, replace(module, ridge=chosen, before=before, after=best_error)


def _moments(walk: BlockWalk, kind: ModuleKind, output: nn.Linear, targets: Sequence[Tensor]) -> _Moments:
    """Moments of a module's inputs in the smaller stream, against what would bring it onto the dense stream."""
    moments = _Moments(output.in_features, output.out_features, walk.stream.device)
    for (x, before), target in zip(walk.inputs(kind), targets, strict=True):
        wanted = target.float() - before.float()
        if output.bias is not None:
            wanted -= output.bias.float()
        moments.add(x, wanted)
    return moments
