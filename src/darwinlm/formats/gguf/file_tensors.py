"""Tensors of a GGUF file under their names in the model, one at a time: `tensors.py` backwards.

Letters: h columns of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from darwinlm.formats.gguf.header import GgufHeader
from darwinlm.formats.gguf.quirks import FromFile, quirks, undoing
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.formats.gguf.tensor_places import FUSED, ROWS_OF, group_of, groups_of, place_in_block, place_of
from darwinlm.formats.gguf.tensors import rotation_gains
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.expert_tensors import as_stored, row_axis
from darwinlm.model.layer_sizes import BlockSizes
from darwinlm.model.surgery.padding import Tensors
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import shorten

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
WEIGHTS_AT_ONCE = 1 << 24
"""Weights of a tensor that are read at once if it lies in the file as in the model."""

Read = Callable[[str, slice], Tensor]
"""Rows of a tensor of the file in float32, or what has their shape."""
ALL = slice(None)


class TensorMissingError(Exception):
    """The file lacks a tensor, whose name this is."""


def neighbours_to_halves(tensor: Tensor, heads: int, turned: int | None = None) -> Tensor:
    """The inverse of `permute_rows`; the arguments are the same."""
    by_head = tensor.reshape(heads, -1, *tensor.shape[1:])
    turned = turned or by_head.shape[1]
    neighbours = by_head[:, :turned].reshape(heads, turned // 2, 2, *tensor.shape[1:])
    halves = neighbours.transpose(1, 2).reshape(heads, turned, *tensor.shape[1:])
    return torch.cat([halves, by_head[:, turned:]], 1).reshape(tensor.shape)


@dataclass(frozen=True)
class FileTensors:
    """The tensors of a model in a file.

    Attributes:
        header: Header of the file.
        reshaper: The model, without weights.
        layout: Its layout in the file.
        embedding: The tensor of the file that is the embedding. A tied model may take its head instead.
    """

    header: GgufHeader
    reshaper: Reshaper
    layout: Layout
    embedding: str = EMBEDDING

    @property
    def _checkpoint(self) -> Checkpoint:
        return self.reshaper.checkpoint

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head."""
        return bool(self._checkpoint.tied)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's tensors by their names, without those that are another one."""
        tied = self._checkpoint.tied
        state = self._checkpoint.outline.state_dict()
        return {name: tuple(tensor.shape) for name, tensor in sorted(state.items()) if name not in tied}

    def check(self) -> None:
        """Check that the file holds exactly the model's tensors, in their shapes, from its header alone.

        Raises CheckpointError, which names the first tensor that is missing, surplus or of another shape.
        """
        used = {name for name in self.header.tensors if name.startswith("rope_")}
        if self.tied:
            used |= {EMBEDDING, HEAD}

        def outline(name: str, rows: slice) -> Tensor:
            used.add(name)
            if name not in self.header.tensors:
                raise TensorMissingError(name)
            return torch.empty(self.header.tensors[name], device="meta")[rows]

        for name, shape in self.shapes.items():
            try:
                found = tuple(self._tensor(name, outline).shape)
            except TensorMissingError as error:
                raise self._error(f"it lacks the tensor {shorten(error)}, of which {name} is made") from error
            except (RuntimeError, LookupError) as error:  # shapes from which the tensor can't be made
                raise self._error(f"{name} can't be made of its tensors ({shorten(error)})") from error
            if found != shape:
                raise self._error(f"{name} would be {_sizes(found)} instead of {_sizes(shape)}")
        unknown = sorted(self.header.tensors.keys() - used)
        if unknown:
            raise self._error(f"it also holds the tensor {shorten(unknown[0])}, which such a model does not have")

    def parts(self, name: str) -> Iterator[Tensor]:
        """A tensor of the model in float32, in consecutive pieces of rows."""
        place = self._plain(name)
        if place is None:
            yield self._tensor(name, self.header.numbers)
            return
        shape = self.header.tensors[place]
        rows = max(1, WEIGHTS_AT_ONCE * shape[0] // prod(shape))
        for start in range(0, shape[0], rows):
            yield self.header.numbers(place, slice(start, start + rows))

    def _plain(self, name: str) -> str | None:
        """The tensor of the file that is one of the model outside of its blocks as it is; None if there is none."""
        if self._block_of(name) is not None:
            return None
        place = self._place_outside(name)
        return None if place == "output_norm.weight" else place

    def _block_of(self, name: str) -> int | None:
        prefix = f"{self._checkpoint.family.layers}."
        return int(name.removeprefix(prefix).partition(".")[0]) if name.startswith(prefix) else None

    def _place_outside(self, name: str) -> str:
        place = place_of(name, self._checkpoint.family, self.layout)
        if place is None:
            raise TensorMissingError(name)
        return self.embedding if place == EMBEDDING else place

    def _tensor(self, name: str, read: Read) -> Tensor:
        """A tensor of the model."""
        block = self._block_of(name)
        if block is None:
            place = self._place_outside(name)
            return self._without_one(read(place, ALL), place)
        inside = name.removeprefix(self._checkpoint.block_prefix(block))
        functions = (self.layout.architecture.tensors.get(inside) or "").split()
        shape = self.shapes[name]
        changed: Tensor | Tensors = torch.empty(shape, device="meta")
        for transform in quirks(" ".join(functions)):
            changed = transform(changed, self._checkpoint.config)
        target = self.layout.targets[block]
        result: Tensor | Tensors
        if isinstance(changed, Tensor):
            result = self._stored(inside, target, read)
        else:
            result = {each: self._stored(each, target, read) for each in changed}
        origin = FromFile(inside, shape, block, self._checkpoint.config, self.header.keys)
        for function in reversed(functions):
            result = undoing(function)(result, origin)
        assert isinstance(result, Tensor)
        return result

    def _stored(self, name: str, target: BlockSizes, read: Read) -> Tensor:
        """A tensor of a block by its name there, of which the file may hold the parts."""
        family, mlp = self._checkpoint.family, self._checkpoint.family.mlp
        groups = groups_of(family, self.layout)
        number = group_of(name, groups)
        places = groups[number].places_of(name) if number >= 0 else []
        if not places:
            place = place_in_block(name, family, self.layout)
            if place is None:
                raise TensorMissingError(f"{self._checkpoint.block_prefix(target.block)}{name}")
            places = [place]
        parts = [self._part(place, target, read) for place in places]
        part = groups[number].part if number >= 0 else mlp
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, row_axis(part, name.removeprefix(part.prefix)))
        return as_stored(mlp, name.removeprefix(mlp.prefix), joined)

    def _part(self, place: str, target: BlockSizes, read: Read) -> Tensor:
        """A tensor of a block of the file with the values that it has in the model."""
        tensor = self._read(place, target, read)
        kind = place.rpartition(".")[0]
        if kind.endswith("_shexp") and self.layout.shared:
            tensor = tensor.narrow(int("down" in kind), 0, target.mlp.shared)
        for function in reversed((self.layout.architecture.arranged.get(kind) or "").split()):
            tensor = undoing(function)(tensor, self.reshaper, self.layout)
        if kind in ("attn_q", "attn_k"):
            heads = target.attention.heads if kind == "attn_q" else target.attention.groups
            tensor = self._order_for_rotation(tensor, heads)
        if kind.endswith("_norm") and kind not in self.layout.architecture.plain_norms:
            tensor = self._without_one(tensor, place)
        return tensor

    def _read(self, place: str, target: BlockSizes, read: Read) -> Tensor:
        """A tensor of a block of the file, or its rows in a fused one."""
        prefix = f"blk.{target.block}."
        kind, _, leaf = place.rpartition(".")
        for fused, parts in FUSED.items():
            if fused in self.layout.architecture.fused and kind in parts and leaf == "weight":
                sizes = [target.rows[ROWS_OF[part]] for part in parts]
                start = sum(sizes[: parts.index(kind)])
                return read(f"{prefix}{fused}.weight", slice(start, start + sizes[parts.index(kind)]))
        return read(prefix + place, ALL)

    def _order_for_rotation(self, tensor: Tensor, heads: int) -> Tensor:
        """Queries or keys for the rotary embedding of transformers."""
        gains = rotation_gains(self.layout, heads)
        if gains is not None:
            tensor = tensor / gains.reshape(-1, *[1] * (tensor.ndim - 1)).to(tensor.device)
        if self.layout.architecture.permuted and not self._checkpoint.family.attention.neighbours:
            tensor = neighbours_to_halves(tensor, heads, self.layout.rope.turned)
        return tensor

    def _without_one(self, tensor: Tensor, place: str) -> Tensor:
        """The weights of a norm without the one that the file's have added."""
        added = self.layout.architecture.unit_norms and place.endswith("norm.weight")
        return tensor - 1 if added else tensor

    def _error(self, reason: str) -> CheckpointError:
        kind = self._checkpoint.family.model_type
        return CheckpointError(
            f"{self.header.path} isn't a whole {kind} model: {reason}. Fetch it again, or give the model's original "
            "folder or hub id"
        )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
