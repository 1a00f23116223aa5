"""Build the database: run the model once, order and factorise each module, write one file per block."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from darwinlm import parallel
from darwinlm.artifact import StageFolder, damaged, read_tensors, write_tensors
from darwinlm.calibration.stream import BlockMoments, BlockStream, Orders, Saliency, stream_moments
from darwinlm.database.blocks import Curve, block_file, experts_tensors, module_tensors, order_tensors
from darwinlm.database.elimination import ROWS
from darwinlm.database.factors import check_energy, estimated_losses, kept_weights, nested_factors, whole_factor_
from darwinlm.database.levels import variants
from darwinlm.database.order import Removal, damp, damp_, ordered_moment, removal_order
from darwinlm.errors import ArtifactError
from darwinlm.families.shapes import ModuleShape, module_shapes
from darwinlm.recipe import UnitsSettings

SMALL = 16 << 20
"""Maximum bytes of a matrix that stays in memory."""

NUMBERS = itertools.count()


@dataclass(frozen=True)
class BuildSettings:
    """Settings of ordering and factorisation.

    `saliency` gives second moments [r, r] of the output gradients of a block's modules, empty for the unweighted order.
    Matrices are moved out of memory to `folder`.
    """

    units: UnitsSettings
    device: torch.device
    folder: Path
    saliency: Saliency = field(default=lambda block: {})


def build_database(
    stage: StageFolder,
    stream: BlockStream,
    units: UnitsSettings,
    saliency: Saliency = lambda block: {},
    orders: Orders | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the factors of every module. Finished blocks of an interrupted run are kept.

    Each process runs its part of the text and factorises its part of the blocks. The stage folder is open for writing;
    its key describes model, text and units. The stream is the calibration text before the first block. `saliency` is as
    in `BuildSettings`, and `orders` as in `stream_moments` (needed for mixtures). `progress` gets the numbers of
    finished and of all blocks.

    Raises:
        NumericsError: Values aren't finite.
        StorageError: The disk is full.
    """
    method = BuildSettings(units, stream.device, stage.folder, saliency)
    shapes = module_shapes(stream.checkpoint)
    total = stream.checkpoint.n_blocks
    done = parallel.broadcast(_finished(stage, total) if parallel.is_main() else 0)
    if done:
        progress(done, total)
    waiting: list[int] = []
    mine: BlockMoments | None = None
    for moments in stream_moments(stream, skip=done, orders=orders):
        if len(waiting) == parallel.place():
            mine = moments
        waiting.append(moments.block)
        del moments
        if len(waiting) == parallel.size() or waiting[-1] == total - 1:
            _factorise_together(stage, method, shapes, waiting, mine)
            progress(waiting[-1] + 1, total)
            waiting, mine = [], None


def _factorise_together(
    stage: StageFolder,
    method: BuildSettings,
    shapes: Sequence[ModuleShape],
    blocks: Sequence[int],
    mine: BlockMoments | None,
) -> None:
    """Each process factorises at most one of the blocks; the first process writes all of them."""
    tensors: dict[str, Tensor] = {}
    own_block = None if mine is None else mine.block
    with parallel.agree():
        if mine is not None:
            own_shapes = [shape for shape in shapes if shape.block == own_block and shape.kind in mine.moments]
            tensors = _block_factors(method, own_shapes, mine)
    for block in blocks:
        collected = parallel.collect(tensors if block == own_block else {})
        parallel.in_main(write_tensors, stage.folder / block_file(block), collected)


def _block_factors(method: BuildSettings, shapes: Sequence[ModuleShape], moments: BlockMoments) -> dict[str, Tensor]:
    """Tensors that the database stores for a block; its second moments are used up.

    Moments of other modules are moved to files, so that only those of the current module are in memory.
    """
    tensors: dict[str, Tensor] = {}
    with ExitStack() as files:
        kinds = list(moments.moments)
        spilled = {kind: files.enter_context(Spilled(moments.moments.pop(kind), method.folder)) for kind in kinds}
        for shape in shapes:
            tensors.update(module_factors(method, shape, spilled[shape.kind], moments.weights[shape.output]))
    return tensors if moments.experts is None else tensors | order_tensors(moments.experts)


def module_factors(method: BuildSettings, shape: ModuleShape, moment: Spilled, W: Tensor) -> dict[str, Tensor]:
    """Tensors that the database stores for one module.

    `moment` is that of the output projection's inputs, [d, d], and W the projection, [r, d] floating; for a mixture
    [e, d, d] and [e, r, d], of its experts.

    Raises:
        NumericsError: Values aren't finite.
        StorageError: The disk is full.
    """
    S = method.saliency(shape.block).get(shape.kind)
    if shape.experts:
        return experts_tensors(expert_factors(method, shape, moment, W, S))
    W = W.to(method.device)
    curves: dict[int, Curve] = {}
    variant, units = 1, torch.arange(shape.width, device=method.device)[:, None]
    if shape.kind != "mlp":  # the last variant has every column
        H = moment.read()
        *narrow, (variant, units) = _candidates(method, shape, H, W, S).items()
        curves = {heads: _narrow_curve(shape.name, H, W, columns, S) for heads, columns in narrow}
        del H
    removal = Removal(moment.rows(), W, units, saliency=S, name=shape.name)
    columns = removal.run().columns(units)
    del removal
    A = damp_(ordered_moment(moment.rows(), columns))
    packed, errors, losses = whole_factor_(A, W, columns, S, name=shape.name)
    check_energy(float(errors[0]), shape.name)
    curves[variant] = Curve(columns, errors, losses)
    if shape.kind == "attention":
        packed = packed.clone()  # frees the memory of A before the MLP
    return module_tensors(shape.kind, curves, packed)


def expert_factors(
    method: BuildSettings, shape: ModuleShape, moment: Spilled, W: Tensor, S: Tensor | None = None
) -> Iterator[tuple[Curve, Tensor]]:
    """Curve and factor of each expert of a mixture. All experts have the same width, but each keeps different channels.

    An unused expert has a second moment of zero. Its channels are removed by the size of their weights, and the
    remaining weights are unchanged.
    """
    channels = torch.arange(shape.width, device=method.device)[:, None]
    for expert in range(shape.experts):
        name = f"{shape.name} expert {expert}"
        H, weight = moment.read(expert), W[expert].to(method.device, torch.float32)
        damped_input = H if bool(H.any()) else torch.eye(shape.width, device=H.device)
        columns = removal_order(damped_input, weight, channels, name=name).units
        A = damp_(ordered_moment(H, columns))
        packed, errors, losses = whole_factor_(A, weight, columns, S, name=name)
        if damped_input is H:
            check_energy(float(errors[0]), name)
        yield Curve(columns, errors, losses), packed.clone()  # frees the memory of A


def _candidates(method: BuildSettings, shape: ModuleShape, H: Tensor, W: Tensor, S: Tensor | None) -> dict[int, Tensor]:
    """Columns [n, u] of every unit, for each variant of an attention; the last variant has every column."""
    heads = torch.arange(shape.width, device=H.device).view(-1, shape.head_dim)
    known = variants(shape, method.units)
    if known == [0]:
        return {0: heads}
    if method.units.attention not in ("lattice", "group_heads") or shape.heads == 1:
        return {shape.heads: heads.view(shape.groups, -1)}
    order = removal_order(H, W, heads, saliency=S, name=shape.name).units.tolist()
    by_rank = [[head for head in order if head // shape.heads == group] for group in range(shape.groups)]
    ranked = torch.tensor(by_rank, device=H.device)
    if method.units.attention == "group_heads":
        return {shape.heads: heads[ranked.T].reshape(shape.heads, -1)}
    best = {count: ranked[:, :count].sort(dim=1).values for count in known}
    return {count: heads[chosen].reshape(shape.groups, -1) for count, chosen in best.items()}


def _narrow_curve(name: str, H: Tensor, W: Tensor, units: Tensor, S: Tensor | None) -> Curve:
    """Curve over units [n, u] of some columns; the other columns are already removed."""
    damped = damp(H)
    flat = units.reshape(-1)
    W_kept = kept_weights(nested_factors(damped, W, flat, name=name), len(flat))
    places = torch.arange(len(flat), device=H.device).view(units.shape)
    order = removal_order(H[flat][:, flat], W_kept, places, saliency=S, name=name)
    factors = nested_factors(damped, W, order.columns(units), name=name)
    return Curve(factors.columns, factors.errors, None if S is None else estimated_losses(factors, damped, W, S))


def _finished(stage: StageFolder, total: int) -> int:
    """Number of blocks finished by an interrupted run."""
    done = 0
    while done < total and (path := stage.folder / block_file(done)).exists():
        try:
            read_tensors(path)
        except ArtifactError:
            path.unlink()
            break
        done += 1
    return done


class Spilled:
    """A matrix, or several of one size, in a file until the end of a `with` block. GPU matrices stay on the GPU.

    The matrix is [d, d] or [e, d, d]; the caller should drop it. The temporary file is in `folder`. Raises StorageError
    if the disk is full.
    """

    def __init__(self, matrix: Tensor, folder: Path) -> None:
        self._kept: Tensor | None = None
        self._path = folder / f".spilled-{os.getpid()}-{next(NUMBERS)}.tmp"
        self._size = matrix.shape[-1]
        if matrix.device.type != "cpu" or matrix.nbytes <= SMALL:
            self._kept = matrix
        else:
            write_tensors(self._path, {"matrix": matrix})

    def __enter__(self) -> Spilled:
        return self

    def __exit__(self, *_: object) -> None:
        if self._kept is None:
            self._path.unlink(missing_ok=True)
        self._kept = None

    def read(self, place: int | slice = slice(None)) -> Tensor:
        """The whole matrix, or an index of its first dimension. Raises ArtifactError."""
        if self._kept is not None:
            return self._kept[place]
        try:
            with safe_open(self._path, framework="pt") as stream:
                part: Tensor = stream.get_slice("matrix")[place]
        except (OSError, SafetensorError) as error:
            raise damaged(self._path, str(error)) from error
        return part

    def rows(self) -> Iterator[Tensor]:
        """Consecutive groups of rows; only these are loaded from a file. Raises ArtifactError."""
        for start in range(0, self._size, ROWS):
            yield self.read(slice(start, min(start + ROWS, self._size)))
