"""Least-squares correction of a stitched model towards the dense one, block by block.

The residual streams of the dense and the smaller model pass through the blocks together. Each output projection is
fitted so that the smaller stream, with its accumulated error, matches the dense stream after that module. λ regularises
towards the stitched weights and is chosen on validation text. If no fit is better there, the stitched weights stay.
Options also fit biases and input projections, and train all weights of a block by local distillation; results are kept
under the same condition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.artifact import StageFolder, read_json, read_tensors, write_json, write_tensors
from darwinlm.calibration.stream import BlockStream
from darwinlm.errors import ArtifactError
from darwinlm.families.family import ModuleKind
from darwinlm.families.shapes import output_name
from darwinlm.surgery.experts import fit_experts, mixture_of
from darwinlm.surgery.local import LocalChoice, distil_block
from darwinlm.surgery.projection_fit import Fit, fit_output, module_moments, output_gain, watched_spread
from darwinlm.surgery.sublayers import BlockWalk


@dataclass(frozen=True)
class FitChoice:
    """Decision for one module.

    Attributes:
        block: Index of the block.
        kind: Kind of the module.
        ridge: Best λ on validation text, for a mixture the most frequent one; None if the stitched weights were kept.
        before: Validation error of the stitched weights, E‖y - W x‖² relative to E‖y‖².
        after: Validation error of the chosen weights.
    """

    block: int
    kind: ModuleKind
    ridge: float | None
    before: float
    after: float


@dataclass
class Streams:
    """Residual streams of the dense and the smaller model on the same text."""

    dense: BlockStream
    small: BlockStream


@dataclass(frozen=True)
class Options:
    """Options of the fit.

    Attributes:
        ridges: Candidate values of λ.
        local_steps: Number of local distillation steps; 0 skips it.
        local_rate: Learning rate of local distillation.
        local_tokens: Tokens in one step of local distillation.
        seed: Seed of the sampling order of local distillation.
        bias: Modules whose bias of the output projection is fitted too; it must exist.
    """

    ridges: tuple[float, ...]
    local_steps: int = 0
    local_rate: float = 2e-4
    local_tokens: int = 2048
    seed: int = 0
    bias: tuple[ModuleKind, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Decisions of the refit.

    Attributes:
        modules: Decision for each module that exists.
        local: Decision for each distilled block, by its number.
    """

    modules: list[FitChoice]
    local: dict[int, LocalChoice]


def refit(
    stage: StageFolder,
    fit: Streams,
    validation: Streams,
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Fit every output projection of the smaller model. Finished blocks of an interrupted run are kept.

    Args:
        stage: Stage folder, opened for writing; each block gets a file of weights (by name inside the block) and one of
            decisions.
        fit: Streams on the fitted text, before the first block; they end after the last one.
        validation: Streams on validation text, before the first block.
        options: Options of the fit.
        progress: Callback with the numbers of finished and total blocks.

    Raises:
        NumericsError: Values aren't finite.
        StorageError: The disk is full.
    """
    outcome = Outcome([], {})
    total = fit.dense.checkpoint.n_blocks
    done = sum(_notes_of(stage, block).exists() for block in range(total))
    progress(done, total)
    for block in range(total):
        for streams in (fit, validation):
            streams.dense.load(block)
            streams.small.load(block)
        notes = _finished(stage, block)
        if notes is not None:
            weights = read_tensors(_weights_of(stage, block)) if notes["weights"] else {}
            for streams in (fit, validation):
                put_weights(streams.small.decoder.blocks[block], weights)
                streams.dense.run(block)
                streams.small.run(block)
        else:
            weights, modules, local = _refit_block(block, fit, validation, options)
            notes = {"weights": bool(weights), "modules": [asdict(choice) for choice in modules]}
            notes["local"] = asdict(local) if local else None
            if weights:
                write_tensors(_weights_of(stage, block), weights)
            write_json(_notes_of(stage, block), notes)
        for streams in (fit, validation):
            streams.dense.unload(block)
            streams.small.unload(block)
        outcome.modules.extend(FitChoice(**note) for note in notes["modules"])
        if notes["local"]:
            outcome.local[block] = LocalChoice(**notes["local"])
        progress(max(done, block + 1), total)
    return outcome


def weights_file(block: int) -> str:
    """File name of a block's fitted weights; the file doesn't exist if all stitched weights were kept."""
    return f"block_{block:04d}.safetensors"


def _weights_of(stage: StageFolder, block: int) -> Any:
    return stage.folder / weights_file(block)


def _notes_of(stage: StageFolder, block: int) -> Any:
    return stage.folder / f"block_{block:04d}.json"


def _finished(stage: StageFolder, block: int) -> dict[str, Any] | None:
    """Decisions of an interrupted run about a block, if its files are intact."""
    path = _notes_of(stage, block)
    if not path.exists():
        return None
    try:
        notes: dict[str, Any] = read_json(path)
        if notes["weights"]:
            read_tensors(_weights_of(stage, block))
    except ArtifactError:
        path.unlink()
        return None
    return notes


def put_weights(block: nn.Module, weights: dict[str, Tensor]) -> None:
    """Set weights of a block by name, converted to the block's type."""
    parameters = dict(block.named_parameters())
    for name, weight in weights.items():
        parameters[name].data = weight.to(parameters[name].device, parameters[name].dtype)


def _refit_block(
    block: int, fit: Streams, validation: Streams, options: Options
) -> tuple[dict[str, Tensor], list[FitChoice], LocalChoice | None]:
    """Move all streams through one block and fit its modules."""
    both = (fit, validation)
    checkpoint = fit.small.checkpoint
    dense = (BlockWalk(fit.dense, block), BlockWalk(validation.dense, block))
    small = (BlockWalk(fit.small, block), BlockWalk(validation.small, block))
    start = [streams.small.hidden.copied(streams.small.memory) for streams in both] if options.local_steps else []
    stitched = checkpoint.read(checkpoint.block_prefix(block), dtype=torch.float32)
    weights: dict[str, Tensor] = {}
    choices: list[FitChoice] = []
    for kind in checkpoint.family.kinds:
        name = output_name(checkpoint.family.module(kind), stitched)
        spreads = []
        for walk in dense:
            with watched_spread(walk, kind) as spread:
                walk.finish(kind)
            spreads.append(spread)
        if name is not None:
            choice, fitted = _Module(kind, name, small, dense, spreads, stitched, options).fit()
            choices.append(choice)
            weights |= fitted
        for walk in small:
            walk.finish(kind)
    if not options.local_steps or not choices:
        return weights, choices, None
    for streams, hidden in zip(both, start, strict=True):
        streams.small.hidden[:] = hidden
    sequences = max(1, options.local_tokens // fit.small.hidden[0].shape[1])
    trained, local = distil_block(
        fit.small,
        validation.small,
        block,
        (fit.dense.hidden, validation.dense.hidden),
        stitched | weights,
        steps=options.local_steps,
        learning_rate=options.local_rate,
        batch_rows=sequences,
        seed=options.seed,
    )
    for streams in both:
        put_weights(streams.small.decoder.blocks[block], trained)
        streams.small.run(block)
    return weights | trained, choices, local


@dataclass(frozen=True)
class _Module:
    """The fit of one module.

    Attributes:
        kind: Kind of the module.
        output: Name of the output projection's weight inside the block.
        small: The smaller streams before the module, on the fitted text and on validation text.
        dense: The dense streams after it, in the same order.
        spreads: Spreads as in `watched_spread`, in the same order.
        stitched: The block's weights, float32 by name inside it.
        options: Options of the fit.
    """

    kind: ModuleKind
    output: str
    small: tuple[BlockWalk, BlockWalk]
    dense: tuple[BlockWalk, BlockWalk]
    spreads: Sequence[list[Tensor]]
    stitched: dict[str, Tensor]
    options: Options

    def fit(self) -> tuple[FitChoice, dict[str, Tensor]]:
        """Fit the output projection and put it into the block."""
        chosen = self._fit_output()
        weights = self._named(chosen)
        self._put(weights)
        return FitChoice(self.small[0].block, self.kind, chosen.ridge, chosen.before, chosen.after), weights

    def _fit_output(self) -> Fit:
        walk = self.small[0]
        label = f"block {walk.block} {self.kind}"
        W0 = self.stitched[self.output].to(walk.stream.device)
        pairs = list(zip(self.small, self.dense, strict=True))
        if W0.ndim == 3:
            (seen, _), (held_out, energy) = (mixture_of(walk, target.stream.hidden) for walk, target in pairs)
            return fit_experts(seen, held_out, energy, W0, self.options.ridges, label)
        gain = output_gain(walk.stream.decoder.blocks[walk.block], walk.stream.checkpoint, self.kind)
        biased = self.kind in self.options.bias
        if biased:
            W0 = torch.cat([W0, self.stitched[self._bias].to(W0.device)[:, None]], dim=1)
        fitted, unseen = (
            module_moments(walk, self.kind, target.stream.hidden, spread, gain, fits_bias=biased)
            for (walk, target), spread in zip(pairs, self.spreads, strict=True)
        )
        return fit_output(fitted, unseen, W0, gain, self.options.ridges, label, bias=biased)

    @property
    def _bias(self) -> str:
        return self.output.removesuffix("weight") + "bias"

    def _named(self, fit: Fit) -> dict[str, Tensor]:
        if fit.ridge is None:
            return {}
        if self.kind not in self.options.bias:
            return {self.output: fit.weight}
        return {self.output: fit.weight[:, :-1], self._bias: fit.weight[:, -1]}

    def _put(self, weights: dict[str, Tensor]) -> None:
        for walk in self.small:
            put_weights(walk.stream.decoder.blocks[walk.block], weights)
