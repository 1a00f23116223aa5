"""Whether a finished run was of the same model and size as another recipe, however the recipe writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.artifact import MANIFEST, STAGES, file_digest, read_manifest

ROUNDING = 1e-9
"""Largest relative difference of equal numbers, which earlier versions rounded otherwise."""


def same_value(before: Any, now: Any) -> bool:
    """Whether two values of a recipe, as JSON, are equal up to rounding."""
    if isinstance(before, dict) and isinstance(now, dict):
        return before.keys() == now.keys() and all(same_value(before[name], now[name]) for name in now)
    numbers = isinstance(before, float) or isinstance(now, float)
    if numbers and isinstance(before, int | float) and isinstance(now, int | float):
        return math.isclose(before, now, rel_tol=ROUNDING)
    return bool(before == now)


def same_model(before: str | None, now: str | None, folder: Path) -> bool:
    """Whether a model's name now and the one of a finished run in `folder` mean the same model.

    They do if they lead to the same place, or if a step of the run has read these weights. A model of the hub has one
    name. Raises CheckpointError if the model is damaged.
    """
    if before == now or before is None or now is None:
        return before == now
    path, earlier = Path(now).expanduser(), Path(before).expanduser()
    if not path.exists():
        return False
    if earlier.exists() and earlier.samefile(path):
        return True
    digest = file_digest(path) if path.is_file() else Checkpoint.describe(path).digest
    return digest in set(_read_by(folder))


def _read_by(folder: Path) -> Iterator[str]:
    """Digests of models that the steps of a run have read, among those of their other inputs."""
    for path in sorted((folder / STAGES).glob(f"*/{MANIFEST}")):
        key = read_manifest(path.parent).key
        inputs = key.get("inputs")
        values = inputs.values() if isinstance(inputs, Mapping) else ()
        yield from (value for value in (*values, key.get("gguf")) if isinstance(value, str))
