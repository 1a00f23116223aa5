"""Fill the database: walk the model once, order and factorise each module, write one file per block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from darwinlm.artifact import StageFolder, read_tensors, write_tensors
from darwinlm.calibration.stream import BlockMoments, BlockStream, stream_moments
from darwinlm.database.factors import NestedFactors, kept_weights, nested_factors
from darwinlm.database.levels import variants
from darwinlm.database.order import damp, removal_order
from darwinlm.database.store import block_file, experts_to_tensors, factors_to_tensors
from darwinlm.errors import ArtifactError
from darwinlm.families.shapes import ModuleShape, module_shapes
from darwinlm.recipe import Units


def build_database(
    stage: StageFolder,
    stream: BlockStream,
    units: Units,
    damping: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the factors of every module; blocks that an interrupted run has finished are kept.

    Args:
        stage: begun; its key describes model, text, units and damping.
        stream: the calibration text before the first block.
        units: what is removed at once.
        damping: relative to the mean of the diagonal of the second moment.
        progress: called with finished and total blocks.

    Raises:
        NumericsError: values aren't finite.
        StorageError: the disk is full.
    """
    shapes = module_shapes(stream.checkpoint)
    done = 0
    while done < stream.checkpoint.n_blocks and _readable(stage, done):
        done += 1
    for moments in stream_moments(stream, skip=done):
        tensors: dict[str, Tensor] = {}
        for shape in shapes:
            if shape.block != moments.block:
                continue
            if shape.experts:
                tensors.update(experts_to_tensors(factorise_experts(shape, moments, stream, damping)))
            elif shape.kind in moments.moments:
                tensors.update(factors_to_tensors(shape, factorise(shape, moments, stream, units, damping)))
        write_tensors(stage.folder / block_file(moments.block), tensors)
        progress(moments.block + 1, stream.checkpoint.n_blocks)


def factorise(
    shape: ModuleShape, moments: BlockMoments, stream: BlockStream, units: Units, damping: float
) -> dict[int, NestedFactors]:
    """Nested factors of one module, one for each of its variants."""
    W = moments.weights[shape.output].to(stream.device, torch.float32)
    H = moments.moments[shape.kind]
    return {
        variant: _ordered_factors(H, W, candidates, damping, shape.name)
        for variant, candidates in _candidates(shape, H, W, units, damping).items()
    }


def _candidates(shape: ModuleShape, H: Tensor, W: Tensor, units: Units, damping: float) -> dict[int, Tensor]:
    """Columns [n, u] of every unit, for each variant of a module."""
    columns = torch.arange(shape.width, device=H.device)
    if shape.kind == "mlp":
        return {1: columns[:, None]}
    heads = columns.view(-1, shape.head_dim)
    found = variants(shape, units)
    if found == [0]:
        return {0: heads}
    if units.attention not in ("lattice", "group_heads") or shape.heads == 1:
        return {shape.heads: columns.view(shape.groups, -1)}
    ranked = _heads_by_rank(shape, heads, H, W, damping)
    if units.attention == "group_heads":
        return {shape.heads: heads[ranked.T].reshape(shape.heads, -1)}
    best = {count: ranked[:, :count].sort(dim=1).values for count in found}
    return {count: heads[chosen].reshape(shape.groups, -1) for count, chosen in best.items()}


def factorise_experts(
    shape: ModuleShape, moments: BlockMoments, stream: BlockStream, damping: float
) -> Iterator[NestedFactors]:
    """Nested factors of each expert of a mixture: all are cut to one width, but each loses its own channels.

    An expert that no token asked for has a second moment of zero: its channels go by the size of their weights, and
    what remains of it stays as it is.
    """
    W = moments.weights[shape.output]
    channels = torch.arange(shape.width, device=stream.device)[:, None]
    for expert, H in enumerate(moments.moments[shape.kind]):
        name = f"{shape.name} expert {expert}"
        own = W[expert].to(stream.device, torch.float32)
        seen = H if bool(H.any()) else torch.eye(shape.width, device=H.device)
        order = removal_order(seen, own, channels, damping=damping, name=name)
        yield nested_factors(damp(H, damping), own, order.units, name=name)


def _heads_by_rank(shape: ModuleShape, heads: Tensor, H: Tensor, W: Tensor, damping: float) -> Tensor:
    """[groups, heads]: query heads of each group, the last to be removed first."""
    order = removal_order(H, W, heads, damping=damping, name=shape.name).units.tolist()
    ranked = [[head for head in order if head // shape.heads == group] for group in range(shape.groups)]
    return torch.tensor(ranked, device=H.device)


def _ordered_factors(H: Tensor, W: Tensor, candidates: Tensor, damping: float, name: str) -> NestedFactors:
    """Factors over units [n, u] of columns in the order of their removal; columns in none of them are gone before."""
    damped = damp(H, damping)
    flat = candidates.reshape(-1)
    if len(flat) == len(H):
        order = removal_order(H, W, candidates, damping=damping, name=name)
    else:
        W_kept = kept_weights(nested_factors(damped, W, flat, name=name), len(flat))
        places = torch.arange(len(flat), device=H.device).view(candidates.shape)
        order = removal_order(H[flat][:, flat], W_kept, places, damping=damping, name=name)
    return nested_factors(damped, W, candidates[order.units].reshape(-1), name=name)


def _readable(stage: StageFolder, block: int) -> bool:
    path = stage.folder / block_file(block)
    if not path.exists():
        return False
    try:
        read_tensors(path)
    except ArtifactError:
        path.unlink()
        return False
    return True
