"""Tensors of a mixture's experts in one form, whatever form the family stores.

The form is [experts, rows, columns], with all rows of the first projection before those of the second. gpt-oss stores
[experts, columns, rows] instead, and alternates the rows of gate and up. Letters: e experts, r rows, c columns.
"""

from __future__ import annotations

from torch import Tensor

from darwinlm.model.families.parts import Experts, SubLayer

MATRIX = 3
"""Dimensions of the weights of experts; biases have one less."""


def by_rows(part: SubLayer, name: str, tensor: Tensor) -> Tensor:
    """A tensor inside a sub-layer, [e, r, c] or [e, r] if it belongs to experts; other tensors are unchanged."""
    experts = experts_with(part, name)
    if experts is None:
        return tensor
    if experts.transposed and tensor.ndim == MATRIX:
        tensor = tensor.mT
    return _regrouped(tensor, tensor.shape[1] // 2, 2) if _alternate(experts, name) else tensor


def as_stored(part: SubLayer, name: str, tensor: Tensor) -> Tensor:
    """The inverse of `by_rows`."""
    experts = experts_with(part, name)
    if experts is None:
        return tensor
    if _alternate(experts, name):
        tensor = _regrouped(tensor, 2, tensor.shape[1] // 2)
    return tensor.mT.contiguous() if experts.transposed and tensor.ndim == MATRIX else tensor


def shape_by_rows(part: SubLayer, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the result of `by_rows`."""
    experts = experts_with(part, name)
    turned = experts is not None and experts.transposed and len(shape) == MATRIX
    return (shape[0], shape[2], shape[1]) if turned else shape


def row_axis(part: SubLayer, name: str) -> int:
    """The dimension of a projection's rows: the first, or the second after that of experts."""
    return 0 if experts_with(part, name) is None else 1


def _regrouped(tensor: Tensor, outer: int, inner: int) -> Tensor:
    """Rows [e, outer · inner, ...] in the order of the inner count first."""
    return tensor.reshape(len(tensor), outer, inner, *tensor.shape[2:]).transpose(1, 2).flatten(1, 2)


def experts_with(part: SubLayer, name: str) -> Experts | None:
    """The experts to which a tensor belongs, if it is one of theirs."""
    experts: Experts | None = getattr(part, "experts", None)
    return experts if experts is not None and name.rpartition(".")[0] == experts.name else None


def _alternate(experts: Experts, name: str) -> bool:
    return experts.interleaved and len(experts.rows_of(name.rpartition(".")[2])) > 1
