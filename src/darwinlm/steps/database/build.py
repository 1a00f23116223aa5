"""Build the database: run the model once, order and factorise each module, write one file per block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.model.families.shapes import ModuleShape, module_shapes
from darwinlm.model.units.levels import variants
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.model.walk.stream import BlockStream
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, await_files, read_tensors, write_tensors
from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.mapped import in_file
from darwinlm.steps.database.block_files import Curve, block_file, experts_tensors, module_tensors
from darwinlm.steps.database.block_moments import BlockMoments, OutputMoments, stream_moments
from darwinlm.steps.database.factors import (
    NestedFactors,
    check_energy,
    kept_weights,
    narrower_errors,
    narrower_factors,
    unpack_lower,
    whole_factor_,
)
from darwinlm.steps.database.order import Order, damp_, least_error, ordered_moment
from darwinlm.steps.database.sharing import block_owner

SMALL = 16 << 20
"""Maximum bytes of a matrix that stays in memory."""


def build_database(
    stage: StageFolder,
    stream: BlockStream,
    units: UnitsSettings,
    gradients: OutputMoments = lambda block: {},
    progress: Callable[[int, int], None] = lambda done, total: None,
    order: Order = least_error,
) -> None:
    """Write the factors of every module. Finished blocks of an interrupted run are kept.

    Each process runs its part of the text, factorises its part of the blocks (`sharing.py`) and writes their files. The
    stage folder is open for writing; its key describes model, text and units. The stream is the calibration text before
    the first block. `gradients` gives second moments [r, r] of the output gradients of a block's modules, empty for the
    unweighted order. `progress` gets the numbers of finished and of all blocks. `order` ranks the units of a module.

    Raises:
        NumericsError: Values aren't finite.
        StorageError: The disk is full.
    """
    shapes = module_shapes(stream.checkpoint)
    total = stream.checkpoint.n_blocks
    done = parallel.broadcast(_finished(stage, total) if parallel.is_main() else 0)
    if done:
        progress(done, total)
    outputs = int(stream.checkpoint.config.hidden_size)
    owner = block_owner(shapes, units, outputs, total, parallel.size(), skip=done)
    mine: BlockMoments | None = None
    for moments in stream_moments(stream, skip=done, owner=owner):
        if owner(moments.block) == parallel.place():
            mine = moments
        block = moments.block
        del moments
        if (block + 1 - done) % parallel.size() == 0 or block + 1 == total:  # one block for each process
            with parallel.agree():
                if mine is not None:
                    own_shapes = [shape for shape in shapes if shape.block == mine.block]
                    tensors = _block_factors(units, own_shapes, mine, gradients, order, stage.folder)
                    write_tensors(stage.folder / block_file(mine.block), tensors)
                    del tensors
            mine = None
            progress(block + 1, total)
    parallel.in_main(await_files, [stage.folder / block_file(block) for block in range(total)])


def _block_factors(
    units: UnitsSettings,
    shapes: Sequence[ModuleShape],
    moments: BlockMoments,
    gradients: OutputMoments,
    order: Order,
    folder: Path,
) -> dict[str, Tensor]:
    """Tensors that the database stores for a block; its second moments are used up.

    Large moments are moved to files in `folder`, whose pages are in memory only while they are used.
    """
    tensors: dict[str, Tensor] = {}
    aside = {kind: _set_aside(moments.moments.pop(kind), folder) for kind in list(moments.moments)}
    for shape in shapes:
        if shape.kind in aside:
            W, S = moments.weights[shape.output], gradients(shape.block).get(shape.kind)
            tensors |= module_factors(units, shape, aside[shape.kind], W, S, order)
    S = gradients(moments.block).get("mlp")
    if moments.shared is not None and S is not None:  # removed with the last experts
        tensors["mlp.shared_loss"] = exact(S.to(moments.shared) * moments.shared).sum(dtype=torch.float64) / 2
    return tensors


def module_factors(
    units: UnitsSettings, shape: ModuleShape, moment: Tensor, W: Tensor, S: Tensor | None, order: Order
) -> dict[str, Tensor]:
    """Tensors that the database stores for one module.

    `moment` is that of the output projection's inputs, [d, d], W the projection, [r, d] floating, and S the second
    moment of the output gradients, [r, r]; for a mixture moment and projection are [e, d, d] and [e, r, d].

    Raises:
        NumericsError: Values aren't finite.
        StorageError: The disk is full.
    """
    S = None if S is None else S.to(moment.device)
    if shape.sizes.experts:
        return experts_tensors(expert_factors(shape, moment, W, S, order))
    W = W.to(moment.device)
    curves: dict[int, Curve] = {}
    narrow, variant, columns = [], 1, torch.arange(shape.sizes.width, device=moment.device)[:, None]
    if shape.kind != "mlp":  # the last variant has every column
        *narrow, (variant, columns) = _candidates(units, shape, moment, W, S, order).items()
    kept = columns[order(moment, W, columns, S, shape.name)].reshape(-1)
    A = damp_(ordered_moment(moment, kept))
    packed, errors, losses = whole_factor_(A, W, kept, S, name=shape.name)
    check_energy(float(errors[0]), shape.name)
    if narrow:
        L = unpack_lower(packed, shape.sizes.width).double()
        whole = NestedFactors(kept, L, W.index_select(1, kept).double() @ L)
        curves = {heads: _narrow_curve(shape.name, moment, whole, some, S, order) for heads, some in narrow}
    curves[variant] = Curve(kept, errors, losses)
    if shape.kind == "attention":
        packed = packed.clone()  # frees the memory of A before the MLP
    return module_tensors(shape.kind, curves, packed)


def expert_factors(
    shape: ModuleShape, moment: Tensor, W: Tensor, S: Tensor | None = None, order: Order = least_error
) -> Iterator[tuple[Curve, Tensor]]:
    """Curve and factor of each expert of a mixture. All experts have the same width, but each keeps different channels.

    An unused expert has a second moment of zero. Its channels are removed by the size of their weights, and the
    remaining weights are unchanged.
    """
    channels = torch.arange(shape.sizes.width, device=moment.device)[:, None]
    for expert in range(shape.sizes.experts):
        name = f"{shape.name} expert {expert}"
        H, weight = moment[expert], W[expert].to(moment.device, torch.float32)
        metric = H if bool(H.any()) else torch.eye(shape.sizes.width, device=H.device)
        columns = order(metric, weight, channels, None, name)
        A = damp_(ordered_moment(H, columns))
        packed, errors, losses = whole_factor_(A, weight, columns, S, name=name)
        if metric is H:
            check_energy(float(errors[0]), name)
        yield Curve(columns, errors, losses), packed.clone()  # frees the memory of A


def _candidates(
    units: UnitsSettings, shape: ModuleShape, H: Tensor, W: Tensor, S: Tensor | None, order: Order
) -> dict[int, Tensor]:
    """Columns [n, u] of every unit, for each variant of an attention; the last variant has every column."""
    sizes, per_group = shape.sizes, shape.sizes.heads_per_group
    heads = torch.arange(sizes.width, device=H.device).view(-1, sizes.head_dim)
    known = variants(shape, units)
    if known == [0]:
        return {0: heads}
    if units.attention != "lattice" or per_group == 1:
        return {per_group: heads.view(sizes.groups, -1)}
    ranks = order(H, W, heads, S, shape.name).tolist()
    by_rank = [[head for head in ranks if head // per_group == group] for group in range(sizes.groups)]
    ranked = torch.tensor(by_rank, device=H.device)
    best = {count: ranked[:, :count].sort(dim=1).values for count in known}
    return {count: heads[chosen].reshape(sizes.groups, -1) for count, chosen in best.items()}


def _narrow_curve(name: str, H: Tensor, whole: NestedFactors, units: Tensor, S: Tensor | None, order: Order) -> Curve:
    """Curve over units [n, u] of some columns; the other columns are already removed. Factors are float64."""
    flat = units.reshape(-1)
    W_kept = kept_weights(narrower_factors(whole, flat), len(flat))
    places = torch.arange(len(flat), device=H.device).view(units.shape)
    kept = units[order(H[flat][:, flat], W_kept, places, S, name)].reshape(-1)
    return Curve(kept, *narrower_errors(whole.target, narrower_factors(whole, kept).target, S))


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


def _set_aside(matrix: Tensor, folder: Path) -> Tensor:
    """Moments [d, d] or [e, d, d]; large ones in main memory lie in a mapped file. Raises StorageError."""
    matrix = exact(matrix)  # from a GPU without float64, it is copied to main memory
    return matrix if matrix.device.type != "cpu" or matrix.nbytes <= SMALL else in_file(matrix, folder)
