"""What CUDA would refuse of an operation, and what it would cost there. Names are those of ATen's schemas."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.gpu.device import Gpu

NAME = "cuda"
"""The device's type, as Python sees it."""

COPIES = frozenset({"aten::copy_", "aten::_to_copy", "aten::_local_scalar_dense", "aten::set_", "aten::record_stream"})
"""Operations that are made to take tensors on two devices, or are asked about one alone."""

INDEXED = frozenset(
    {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index"}
)
"""Their indices may lie in main memory while the indexed tensor is on the device; they are copied there."""

BROADCAST_SCALARS = frozenset(
    {"aten::where", "aten::masked_fill", "aten::masked_fill_", "aten::fill_", "aten::fill", "aten::index_fill_"}
)
"""Not tagged pointwise, but they too take a 0-dim tensor of main memory."""

WITHOUT_KERNEL = frozenset(
    {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::new_empty_strided"}
)

SIZED_BY_VALUES = frozenset(
    f"aten::{name}"
    for name in (
        *("nonzero", "nonzero_numpy", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "equal"),
        *("is_nonzero", "repeat_interleave", "bincount"),
    )
)
"""The host must know the result before it can go on."""

MULTIPLIED = frozenset(
    f"aten::{name}" for name in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_", "addmv", "mv")
)
"""Products of cuBLAS, which has none of integers."""

WITHOUT_KERNELS = (torch.uint16, torch.uint32, torch.uint64)
"""Types that are only stored and converted."""


@cache
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Places and names of the arguments that an operation writes."""
    return tuple((at, one.name) for at, one in enumerate(func._schema.arguments) if one.is_write)


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    found = [args[at] if at < len(args) else kwargs.get(name) for at, name in _written(func)]
    several = [one for each in found for one in (each if isinstance(each, (list, tuple)) else [each])]
    return [one for one in several if isinstance(one, Tensor)]


@dataclass(frozen=True)
class Call:
    """One operation as it was asked for.

    Attributes:
        func: The ATen overload.
        args: Positional arguments.
        kwargs: Named ones.
        tensors: All tensors in them, in order.
        target: The device that the call names; None where it names none.
        gpu: The device; it knows what is pinned.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    target: torch.device | None
    gpu: Gpu

    @property
    def name(self) -> str:
        name: str = self.func._schema.name
        return name

    def on_device(self, tensor: Tensor) -> bool:
        return tensor.device.type == NAME

    def refusal(self) -> str | None:
        """What CUDA would complain about; None where it wouldn't."""
        if self.name in COPIES:
            return None
        if self.name in INDEXED:
            return self._index_refusal()
        scalars = torch.Tag.pointwise in self.func.tags or self.name in BROADCAST_SCALARS or "_foreach" in self.name
        counted = [one for one in self.tensors if not (scalars and one.ndim == 0 and one.device.type == "cpu")]
        return self._unlike(counted)

    def _index_refusal(self) -> str | None:
        indexed, indices, *values = self.args
        found = [one for one in indices if isinstance(one, Tensor)]
        if indexed.device.type == "cpu" and any(map(self.on_device, found)):
            return f"{self.name}: a tensor in main memory with an index on the device"
        return self._unlike([indexed, *(one for one in values if isinstance(one, Tensor) and one.ndim)])

    def _unlike(self, tensors: list[Tensor]) -> str | None:
        if len({str(one.device) for one in tensors}) < 2:
            return None
        return f"{self.name}: " + ", ".join(f"{one.device} {tuple(one.shape)}" for one in self.tensors)

    def lacking_kernel(self) -> str | None:
        """What CUDA says where it has no kernel for a type that a CPU has one for; None where it has one."""
        lacking: list[torch.dtype] = []
        types = {one.dtype for one in self.tensors if self.on_device(one)}
        if self.name in MULTIPLIED:
            lacking = [one for one in types if not (one.is_floating_point or one.is_complex)]
        elif self.is_kernel and self.name not in COPIES:
            lacking = [one for one in types if one in WITHOUT_KERNELS]
        return f'"{self.name.removeprefix("aten::")}_cuda" not implemented for {lacking[0]}' if lacking else None

    @cached_property
    def written(self) -> list[Tensor]:
        return written_by(self.func, self.args, self.kwargs)

    @property
    def is_kernel(self) -> bool:
        is_view = getattr(self.func, "is_view", False) or self.name.endswith(("detach", "alias"))
        return not (is_view or self.name in WITHOUT_KERNEL or self.name == "aten::record_stream")

    @property
    def goes_up(self) -> bool:
        if self.name == "aten::_to_copy":
            return self.target is not None and self.target.type == NAME and not self._any_on_device
        if self.name == "aten::copy_":
            return self.on_device(self.tensors[0]) and not self.on_device(self.tensors[1])
        if self.name in INDEXED:
            return any(not self.on_device(one) and one.ndim > 0 for one in self.tensors[1:])
        return False

    @property
    def waits(self) -> str:
        """Why the host waits for the device; empty where it doesn't."""
        if self.name == "aten::_local_scalar_dense":
            return "a number is read"
        if self.name in SIZED_BY_VALUES:
            return f"{self.name} sizes its result by values"
        if self.name in INDEXED and any(one.dtype == torch.bool for one in self.tensors[1:] if self.on_device(one)):
            return "indexed by a mask"
        return "copied to the host" if self.goes_down and not self.in_passing else ""

    @property
    def _any_on_device(self) -> bool:
        return any(map(self.on_device, self.tensors))

    @property
    def goes_down(self) -> bool:
        if self.name == "aten::_to_copy":
            return self.target is not None and self.target.type == "cpu" and self._any_on_device
        if self.name == "aten::copy_":
            return not self.on_device(self.tensors[0]) and self.on_device(self.tensors[1])
        return False

    @property
    def source(self) -> Tensor:
        return self.tensors[-1]

    @property
    def in_passing(self) -> bool:
        """Whether a copy leaves the host at once: it must be asked for, and main memory must be pinned.

        What `to` copies to is pinned by PyTorch.
        """
        asked = self.kwargs.get("non_blocking") or (self.name == "aten::copy_" and self.args[2:3] == (True,))
        if not asked or self.name not in ("aten::copy_", "aten::_to_copy"):
            return False
        if self.name == "aten::_to_copy" and self.goes_down:
            return True
        here = [one for one in self.tensors if not self.on_device(one)]
        return all(self.gpu.pinned(one) is not None for one in here)
