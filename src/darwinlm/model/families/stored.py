"""The tensors that the shards of a checkpoint hold, by the names that they are stored under.

A quantised weight consists of several of them; it is read as floats, under the name that it would have as such.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open

from darwinlm.model.families.files import WEIGHTS, is_named
from darwinlm.model.families.quantised import UNUSED, Packed, WeightFormat, packed_weights
from darwinlm.model.families.shard_reading import Empty, Span, read_spans, spans
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import load_json, shorten

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GONE = (errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN)
"""Errors of a disk or folder that was there before."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Element types of weights, as safetensors name them, that can be read as numbers."""
NO_WEIGHTS = (r"rotary_emb\.inv_freq$", r"\.attn\.bias$", r"masked_bias$", r"position_ids$")
"""Buffers that old releases saved; they are recomputed."""


class Slice(Protocol):
    """A tensor of an open shard that isn't read yet."""

    def get_dtype(self) -> str:
        """Element type, as safetensors names it."""

    def get_shape(self) -> Sequence[int]:
        """Shape of the tensor."""


class Shard(Protocol):
    """An open shard, as safetensors gives it."""

    def keys(self) -> Iterable[str]:
        """Names of its tensors."""

    def get_tensor(self, name: str) -> torch.Tensor:
        """Read a tensor."""

    def get_slice(self, name: str) -> Slice:
        """Look at a tensor without reading it."""


@dataclass(frozen=True)
class Stored:
    """The shards of a folder, whose quantised weights are in one of `formats`."""

    folder: Path
    formats: tuple[WeightFormat, ...] = ()

    @cached_property
    def shards(self) -> dict[str, str]:
        """Name of the shard that holds each tensor."""
        return shards_of(self.folder)

    @cached_property
    def packed(self) -> dict[str, Packed]:
        """Quantised weights by the name that they would have as floats."""
        return packed_weights(self.shards, self.formats, self.folder)

    @cached_property
    def plain(self) -> list[str]:
        """Names of stored tensors that aren't part of a quantised weight."""
        parts = {name for packed in self.packed.values() for name in packed.names}
        unpacked = [name for name in self.shards if name not in parts]
        return [name for name in unpacked if not (self.formats and name.rpartition(".")[2] in UNUSED)]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight, from the headers of the shards.

        Raises:
            CheckpointError: A shard is damaged or holds a tensor that the index doesn't assign to it, or a tensor isn't
                floating-point.
        """
        shards = {shard: tensors_in(self.folder / shard) for shard in sorted(set(self.shards.values()))}
        for shard, names in shards.items():
            for name in names:
                if self.shards.get(name) != shard and not is_buffer(name):  # transformers would read this one
                    raise CheckpointError(
                        f"{self.folder / shard} holds the tensor {shorten(name)}, but the index assigns it to "
                        f"{self.shards.get(name, 'no file')}: fetch the model again"
                    )
        stored = {name: shards[shard][name] for name, shard in self.shards.items() if name in shards[shard]}
        shapes = {name: packed.shape(stored) for name, packed in self.packed.items()}
        plain = {name: stored[name] for name in self.plain if name in stored}
        for name, (element, _) in plain.items():
            if element not in FLOATS and not is_buffer(name):
                raise CheckpointError(
                    f"{self.folder}: the tensor {shorten(name)} holds {element} numbers, and nothing that turns them "
                    "into floats: fetch the model again, or use the one that it was made from"
                )
        return shapes | {name: shape for name, (_, shape) in plain.items()}

    def reader(
        self, weights: Iterable[str], dtype: torch.dtype, empty: Empty | None = None
    ) -> Callable[[str], torch.Tensor]:
        """Read some weights, and get each of them once by name; quantised ones in `dtype`, others as they are stored.

        What is stored is read into the tensors that `empty` makes; without it, the file is mapped. Raises
        CheckpointError, also later, if a shard is damaged or has gone.
        """
        packed = self.packed
        names: list[str] = []
        for weight_name in weights:
            names += packed[weight_name].names if weight_name in packed else [weight_name]
        stored = self._read(names, empty)

        def weight(name: str) -> torch.Tensor:
            return packed[name].weight(stored.pop).to(dtype) if name in packed else stored.pop(name)

        return weight

    def rows(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """Some rows of a tensor that isn't quantised. Raises CheckpointError if its shard is damaged."""
        with opened(self.folder / self.shards[name]) as stream:
            return stream.get_tensor(name).index_select(0, index)

    def _read(self, names: Iterable[str], empty: Empty | None) -> dict[str, torch.Tensor]:
        by_shard: dict[str, list[str]] = {}
        for name in names:
            by_shard.setdefault(self.shards[name], []).append(name)
        stored: dict[str, torch.Tensor] = {}
        for shard, inside in by_shard.items():
            path = self.folder / shard
            known = {} if empty is None else self._spans_of(shard)
            if empty is not None:
                with errors_of(path):
                    stored |= read_spans(path, ((name, known[name]) for name in inside if name in known), empty)
            if others := [name for name in inside if name not in known]:
                with opened(path) as stream:
                    stored |= {name: stream.get_tensor(name) for name in others}
        return stored

    @cached_property
    def _spans(self) -> dict[str, dict[str, Span]]:
        return {}

    def _spans_of(self, shard: str) -> dict[str, Span]:
        """Where the tensors of a shard lie; its header is checked and read once."""
        if shard not in self._spans:
            with opened(self.folder / shard):  # which checks the header
                self._spans[shard] = spans(self.folder / shard)
        return self._spans[shard]


def is_buffer(name: str) -> bool:
    """Whether a stored tensor is a buffer that is recomputed."""
    return matches(name, NO_WEIGHTS)


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name has one of some regular expressions in it."""
    return any(re.search(pattern, name) for pattern in patterns)


def shards_of(folder: Path) -> dict[str, str]:
    """Name of the shard that holds each tensor. Raises CheckpointError if there is none, or the index is damaged."""
    index = folder / INDEX
    if index.is_file():
        single = folder / SINGLE
        try:
            shards = {str(name): str(shard) for name, shard in load_json(index)["weight_map"].items()}
        except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
            raise CheckpointError(f"{index} is damaged ({shorten(error)}): fetch the model again") from error
        for shard in set(shards.values()):
            if Path(shard).name != shard or len(shard) > 255 or "\0" in shard or not is_named(shard, WEIGHTS[:1]):
                raise CheckpointError(
                    f"{index} points outside its folder, or not to safetensors ({shorten(shard)}): don't trust "
                    "this model"
                )
        if single.is_file() and SINGLE not in shards.values():
            raise CheckpointError(
                f"{folder} holds {SINGLE}, and {INDEX} that names other files: remove the weights that aren't "
                "the model's, since other tools read the former"
            )
        return shards
    single = folder / SINGLE
    if not single.is_file():
        pickled = next(iter(sorted(folder.glob("*.bin"))), None)
        why = f"; {pickled.name} is a pickle, which can run code and isn't read" if pickled is not None else ""
        raise CheckpointError(
            f"{folder} holds no safetensors weights ({SINGLE} or {INDEX}){why}: save the model as safetensors"
        )
    return dict.fromkeys(tensors_in(single), SINGLE)


@contextmanager
def opened(shard: Path) -> Iterator[Shard]:
    """A shard to read from. Raises CheckpointError if it is damaged or has gone, also while it is read."""
    with errors_of(shard), safe_open(shard, framework="pt") as stream:
        yield stream


@contextmanager
def errors_of(shard: Path) -> Iterator[None]:
    """Report what goes wrong while a shard is read. Raises CheckpointError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if shard.is_file() and not os.access(shard, os.R_OK):  # the library says that it isn't there
            raise CheckpointError(f"{shard} can't be read: change its permissions") from error
        if any(os.strerror(number) in str(error) for number in GONE):
            raise CheckpointError(
                f"{shard} can't be read any more ({shorten(error)}): bring back its disk or folder, then rerun the "
                "same command; finished work is kept"
            ) from error
        raise CheckpointError(f"{shard} is damaged ({shorten(error)}): fetch the model again") from error


def tensors_in(shard: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Element type and shape of each tensor of a shard. Raises CheckpointError as `opened`."""
    with opened(shard) as stream:
        parts = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
        return {name: (str(part.get_dtype()), tuple(part.get_shape())) for name, part in parts.items()}
