"""Least-squares correction of a stitched model towards the dense one, block by block.

The residual streams of the dense and the smaller model pass through the blocks together. Each output projection is
fitted so that the smaller stream, with its accumulated error, matches the dense stream after that module. λ regularises
towards the stitched weights and is chosen on validation text. If no fit is better there, the stitched weights stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from darwinlm.model.families.expert_tensors import as_stored, by_rows
from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.families.shapes import output_name
from darwinlm.model.walk.stream import BlockStream
from darwinlm.model.walk.sublayers import BlockWalk
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import await_files, write_tensors
from darwinlm.steps.database.block_files import block_file
from darwinlm.steps.refit.expert_fit import fit_experts, mixture_of
from darwinlm.steps.refit.projection_fit import (
    errors_behind_norm,
    fit_output,
    module_moments,
    output_gain,
    watched_spread,
    watched_sums,
)

STRENGTHS = (0.5, 0.75, 1.0)
"""Candidate factors of interpolation from the stitched to the fitted weights; 50 to 75 % were the best of five, see
docs/notebook/training.md."""


@dataclass
class Streams:
    """Residual streams of the dense and the smaller model on the same text, this process's share of it."""

    dense: BlockStream
    small: BlockStream


def refit(
    folder: Path, fit: Streams, validation: Streams, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[float | None]:
    """Fit every output projection of the smaller model, and write the weights of each block by name in it.

    The streams stand before the first block; they end after the last one; those on validation text are beside the
    others. Processes share the text and fit the same weights from moments of all of it; the owner of a block reads it
    and writes its weights. A block without an accepted fit has no file.

    Returns:
        The best λ of each module on validation text; None if the stitched weights were kept.

    Raises:
        NumericsError: Values aren't finite.
        StorageError: The disk is full.
    """
    chosen: list[float | None] = []
    written: list[Path] = []
    total = fit.dense.checkpoint.n_blocks
    streams = (fit.dense, fit.small, validation.dense, validation.small)
    for stream in streams:
        stream.decoder.share(parallel.owner)
    walks = [stream.walk() for stream in streams]
    for block in range(total):
        with parallel.agree():
            for walk in walks:
                next(walk)
        weights, fits = _refit_block(block, fit, validation)
        path = folder / block_file(block)
        written += [path] if weights else []
        with parallel.agree():
            if parallel.owner(block) == parallel.place():
                if weights:
                    write_tensors(path, weights)
                else:  # an interrupted run may have left one
                    path.unlink(missing_ok=True)
        chosen += fits
        progress(block + 1, total)
    for walk in walks:  # releases the last block
        next(walk, None)
    parallel.in_main(await_files, written)
    return chosen


def from_owner(block: int, read: Callable[[], dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    """Weights of a block by name, read by its owner alone and sent to all processes; inside `parallel.agree`."""
    owner = parallel.owner(block)
    own = {name: weight.to(device) for name, weight in read().items()} if owner == parallel.place() else {}
    return parallel.send_named(own, parallel.meet(parallel.forms_of(own))[owner], owner, device)


def put_weights(block: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set weights of a block by name, converted to the block's type."""
    parameters = dict(block.named_parameters())
    for name, weight in weights.items():
        parameters[name].data = weight.to(parameters[name].device, parameters[name].dtype)


def _refit_block(block: int, fit: Streams, validation: Streams) -> tuple[dict[str, Tensor], list[float | None]]:
    """Move all streams through one block and fit its modules."""
    checkpoint = fit.small.checkpoint
    dense = (BlockWalk(fit.dense, block), BlockWalk(validation.dense, block))
    small = (BlockWalk(fit.small, block), BlockWalk(validation.small, block))
    prefix = checkpoint.block_prefix(block)
    present = {name.removeprefix(prefix) for name in checkpoint.tensors if name.startswith(prefix)}
    weights: dict[str, Tensor] = {}
    chosen: list[float | None] = []
    for kind in checkpoint.family.kinds:
        part = checkpoint.family.module(kind)
        name = output_name(part, present) if kind != "tail" else None
        spreads, targets, stitched = [], [], dict[str, Tensor]()
        with parallel.agree():
            for walk in dense:
                with watched_spread(walk, kind) as spread, watched_sums(walk, kind) as sums:
                    walk.finish(kind)
                spreads.append(spread)
                targets.append(sums or walk.stream.hidden)
            if name is not None:
                read = partial(checkpoint.read, prefix + name, dtype=torch.float32)
                stitched = from_owner(block, read, fit.small.device)
        if name is not None:
            inner = name.removeprefix(part.prefix)
            weight, ridge = _fit_module(kind, small, targets, spreads, by_rows(part, inner, stitched[""]))
            chosen.append(ridge)
            if ridge is not None:
                weights[name] = as_stored(part, inner, weight)
                for walk in small:
                    put_weights(walk.stream.decoder.blocks[block], {name: weights[name]})
        with parallel.agree():
            for walk in small:
                walk.finish(kind)
    return weights, chosen


def _fit_module(
    kind: ModuleKind,
    small: Sequence[BlockWalk],
    targets: Sequence[Iterable[Tensor]],
    spreads: Sequence[list[Tensor]],
    W0: Tensor,
) -> tuple[Tensor, float | None]:
    """The best weights of an output projection on validation text, and their λ, as `fit_output`.

    `small` are the smaller streams before the module, on the fitted text and on validation text; `targets` are as in
    `module_moments`, and `spreads` as in `watched_spread`, in the same order. W0 are the stitched weights, float32.
    """
    walk = small[0]
    label = f"block {walk.block} {kind}"
    W0 = W0.to(walk.stream.device)
    if W0.ndim == 3:
        triples = zip(small, targets, spreads, strict=True)
        seen, held_out = (mixture_of(walk, goal, outputs) for walk, goal, outputs in triples)
        return fit_experts(seen, held_out, W0, label)
    gain = output_gain(walk.stream.decoder.blocks[walk.block], walk.stream.checkpoint, kind)
    fitted = module_moments(walk, kind, targets[0], spreads[0], gain)
    if spreads[0]:

        def errors(candidates: Sequence[Tensor]) -> list[float]:
            return errors_behind_norm(small[1], kind, targets[1], candidates)

    else:

        def errors(candidates: Sequence[Tensor]) -> list[float]:
            unseen = module_moments(small[1], kind, targets[1], [], gain)
            return unseen.errors([W if gain is None else gain[:, None] * W for W in candidates])

    return fit_output(fitted, errors, W0, gain, label, normed=bool(spreads[0]))
