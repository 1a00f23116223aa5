"""Least-squares correction of a stitched model toward the dense one, block by block (DESIGN: refit).

Two residual streams walk the blocks together, the dense model's and the smaller one's. Each output projection is
fitted so that the smaller stream, with all the error that it already carries, lands where the dense stream is after
that module. The strength of the pull toward the stitched weights is chosen on validation text, and where no fit
beats the stitched weights there, they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from darwinlm.artifact import StageFolder, read_json, read_tensors, write_json, write_tensors
from darwinlm.calibration.moments import CrossMoment, SecondMoment
from darwinlm.calibration.stream import BlockStream, output_projection
from darwinlm.errors import ArtifactError
from darwinlm.families.family import KINDS, Family, ModuleKind
from darwinlm.surgery.ridge import ridge_solution, squared_error


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


class _Reached(Exception):  # noqa: N818
    """Ends the pass through a block whose module's input has been seen."""


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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Choice]:
    """Fit every output projection of the smaller model; blocks that an interrupted run has finished are kept.

    Args:
        stage: begun; one file of weights and one of choices is written for each block.
        fit: streams over the text that is fitted, before the first block.
        validation: streams over other text, before the first block.
        ridges: strengths to try.
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
            weights, made = _refit_block(block, fit, validation, ridges)
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
    block: int, fit: Streams, validation: Streams, ridges: tuple[float, ...]
) -> tuple[dict[str, Tensor], list[Choice]]:
    """Advance all streams through one block, fitting its modules on the way."""
    family = fit.dense.checkpoint.family
    targets = {id(streams): _dense_targets(block, streams.dense, family) for streams in (fit, validation)}
    stitched = fit.small.checkpoint.read(fit.small.checkpoint.block_prefix(block), dtype=torch.float32)
    weights: dict[str, Tensor] = {}
    choices: list[Choice] = []
    for kind in KINDS:
        output = output_projection(fit.small.decoder.blocks[block], family, kind)
        if output is None:
            continue
        seen = _module_moments(block, kind, fit, targets[id(fit)][kind])
        held_out = _module_moments(block, kind, validation, targets[id(validation)][kind])
        part = family.module(kind)
        W0 = stitched[f"{part.name}.{part.output}.weight"].to(fit.small.device)
        best, chosen, best_error = W0, None, held_out.error(W0)
        before = best_error
        for ridge in ridges:
            name = f"block {block} {kind}"
            W = ridge_solution(seen.inputs.mean(), seen.cross.mean(), W0, ridge, name=name)
            error = held_out.error(W)
            if error < best_error:
                best, chosen, best_error = W, ridge, error
        choices.append(Choice(block, kind, chosen, before, best_error))
        if chosen is not None:
            weights[kind] = best
            for streams in (fit, validation):
                _put(streams.small, block, {kind: best})
    for streams in (fit, validation):
        streams.small.run(block)
    return weights, choices


@torch.no_grad()
def _dense_targets(block: int, stream: BlockStream, family: Family) -> dict[ModuleKind, list[Tensor]]:
    """Run the dense stream through a block: the residual stream after its attention and after its MLP, by batch."""
    stream.load(block)
    middle: list[Tensor] = []
    handle = None
    norm = getattr(stream.decoder.blocks[block], family.mlp.norms[0], None)
    if norm is not None:
        handle = norm.register_forward_pre_hook(lambda _, inputs: middle.append(inputs[0]))
    stream.run(block)
    if handle is not None:
        handle.remove()
    # Without an MLP the block ends where its attention does.
    return {"attention": middle if len(middle) == len(stream.hidden) else stream.hidden[:], "mlp": stream.hidden[:]}


@contextmanager
def _watched(module: nn.Module, seen: list[Tensor], *, stop: bool) -> Iterator[None]:
    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        if stop:
            raise _Reached

    handle = module.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _module_moments(block: int, kind: ModuleKind, streams: Streams, targets: list[Tensor]) -> _Moments:
    """Moments of a module's inputs in the smaller stream, against what would bring it onto the dense stream."""
    small = streams.small
    layer = small.decoder.blocks[block]
    output = output_projection(layer, small.checkpoint.family, kind)
    assert output is not None
    moments = _Moments(output.in_features, output.out_features, small.device)
    norm = getattr(layer, small.checkpoint.family.mlp.norms[0]) if kind == "mlp" else None
    for hidden, target in zip(small.hidden, targets, strict=True):
        inputs: list[Tensor] = []
        before: list[Tensor] = []
        with _watched(output, inputs, stop=True):
            try:
                if norm is None:
                    before.append(hidden)
                    small.decoder.run_block(block, hidden, small.arguments[len(hidden)][block])
                else:
                    with _watched(norm, before, stop=False):
                        small.decoder.run_block(block, hidden, small.arguments[len(hidden)][block])
            except _Reached:
                pass
        wanted = target.float() - before[0].float()
        if output.bias is not None:
            wanted -= output.bias.float()
        moments.add(inputs[0], wanted)
    return moments
