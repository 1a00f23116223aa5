"""The safetensors files of a checkpoint: which tensors they hold, and reading them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from darwinlm.families.files import WEIGHTS, is_named
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import load_json, shorten

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GONE = (errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN)
"""Errors of a disk or folder that was there before."""


def shards_of(folder: Path) -> dict[str, str]:
    """Name of the shard that holds each tensor. Raises CheckpointError if there is none, or the index is damaged."""
    index = folder / INDEX
    if index.is_file():
        single = folder / SINGLE
        try:
            shards = {str(k): str(v) for k, v in load_json(index)["weight_map"].items()}
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
def opened(shard: Path, backend: str = "mmap") -> Iterator[Any]:
    """A shard to read from. Raises CheckpointError if it is damaged or has gone, also while it is read."""
    try:
        with safe_open(shard, framework="pt", backend=backend) as stream:
            yield stream
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
