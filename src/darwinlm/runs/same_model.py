"""Whether a finished run was of the same model and size as another recipe, however the recipe writes them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.artifact import MANIFEST, STAGES, file_digest, read_manifest

ROUNDING = 1e-9
"""Largest relative difference of equal numbers, which earlier versions rounded otherwise."""


def same_value(recorded: object, value: object) -> bool:
    """Whether two values of a recipe, as JSON, are equal up to rounding."""
    if isinstance(recorded, dict) and isinstance(value, dict):
        return recorded.keys() == value.keys() and all(same_value(recorded[name], value[name]) for name in value)
    numbers = isinstance(recorded, float) or isinstance(value, float)
    if numbers and isinstance(recorded, int | float) and isinstance(value, int | float):
        return math.isclose(recorded, value, rel_tol=ROUNDING)
    return bool(recorded == value)


def same_model(recorded: str | None, name: str | None, folder: Path) -> bool:
    """Whether a model's name now and the one of a finished run in `folder` mean the same model.

    They do if they lead to the same place, or if a step of the run has read these weights. A model of the hub has one
    name. Raises CheckpointError if the model is damaged.
    """
    if recorded == name or recorded is None or name is None:
        return recorded == name
    path, recorded_path = Path(name).expanduser(), Path(recorded).expanduser()
    if not path.exists():
        return False
    if recorded_path.exists() and recorded_path.samefile(path):
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
