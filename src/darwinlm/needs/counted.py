"""What a pass through the blocks costs: operations and memory, counted by PyTorch itself.

The family's own blocks run on fake tensors, which have shapes but no data. So attention variants, fused projections,
MLPs without a gate and mixtures of experts need no formulas. Blocks with the same parameter names differ only in their
widths; the largest one is counted, and others cost as much per parameter.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import FamilyError, first_line
from darwinlm.streaming.decoder import Decoder

KERNELS = flop_registry | {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape)  # type: ignore[no-untyped-call]
    ),
    torch.ops.aten._grouped_mm: lambda rows, experts, *_, **__: 2 * rows.numel() * experts.shape[-1],
}
"""Operations of kernels from their arguments: those of PyTorch's counter, and two that it doesn't know."""

ERRORS = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # `FamilyError` says it

TOKENS = 1 << 20
"""Tokens of a counted pass: so many that copies and gradients of weights don't count beside activations."""


@dataclass(frozen=True)
class Passes:
    """Costs for one token.

    Attributes:
        flops: Operations of matrix products in a forward pass through all blocks.
        peak: Bytes at the peak of a pass through one block, besides weights and their gradients.
        saved: Bytes that all blocks keep for the backward pass; 0 if there is none.
    """

    flops: float
    peak: float
    saved: float


def count_passes(checkpoint: Checkpoint, model: Any, length: int, dtype: torch.dtype, *, backward: bool) -> Passes:
    """Count a pass through every block. The skeleton's tensors are replaced by fake ones.

    With `backward`, a backward pass follows, with gradients of all weights. Raises FamilyError if PyTorch can't run the
    blocks without data.
    """
    family, scale = checkpoint.family, 1.0
    if family.mlp.experts is not None:  # PyTorch knows the grouped products of fake tensors in bfloat16 alone
        scale, dtype = dtype.itemsize / 2, torch.bfloat16
    decoder, count = Decoder(model, family), max(1, TOKENS // length)
    sources = family.attention.sources(checkpoint.config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    flops = peak = saved = 0.0
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            fake = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
            model.load_state_dict(fake, assign=True, strict=False)
            tokens = torch.zeros(count, length, dtype=torch.int64)
            hidden, arguments = decoder.embed(tokens), decoder.block_arguments(tokens)
            for index, alike in typical_blocks(decoder):
                if index in sources:  # whose keys and values it reuses
                    with torch.no_grad():
                        decoder.run_block(sources[index], hidden, arguments[sources[index]])
                found = _count(decoder, index, hidden, arguments[index], backward=backward)
                flops, peak, saved = flops + alike * found[0], max(peak, found[1]), saved + alike * found[2]
    except ERRORS as error:
        raise FamilyError(
            f"can't plan {checkpoint.source}: PyTorch can't count what its blocks cost ({first_line(error)}): check "
            "its config.json; darwinlm prune needs no plan"
        ) from error
    number = count * length
    return Passes(flops / number, scale * peak / number, scale * saved / number)


def typical_blocks(decoder: Decoder) -> Iterator[tuple[int, float]]:
    """The largest block with each set of parameter names, and the number of blocks that cost as much together."""
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in decoder.blocks]
    kinds: dict[frozenset[str], list[int]] = {}
    for index, block in enumerate(decoder.blocks):
        kinds.setdefault(frozenset(name for name, _ in block.named_parameters()), []).append(index)
    for kind in kinds.values():
        index = max(kind, key=sizes.__getitem__)
        if sizes[index]:
            yield index, sum(sizes[each] for each in kind) / sizes[index]


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, and bytes of all tensors that were seen: those still held, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.held = self.peak = 0.0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = KERNELS.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.hold(tensor)
        return result

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's memory, once, until it is freed."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._storages:
            self._storages.add(id(storage))
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._free, id(storage), storage.nbytes())

    def _free(self, storage: int, count: int) -> None:
        self._storages.remove(storage)
        self.held -= count


def _count(
    decoder: Decoder, index: int, hidden: Tensor, arguments: dict[str, Any], *, backward: bool
) -> tuple[float, float, float]:
    hidden = hidden.detach().requires_grad_(backward)
    decoder.blocks[index].requires_grad_(requires_grad=True)
    with _Meter() as meter, torch.set_grad_enabled(backward):
        meter.hold(hidden)
        after = decoder.run_block(index, hidden, arguments)
        flops, saved = meter.flops, meter.held - after.nbytes
        if backward:
            after.backward(torch.empty_like(after))  # type: ignore[no-untyped-call]
    return flops, meter.peak, saved
