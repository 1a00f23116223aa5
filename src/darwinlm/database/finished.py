"""Find a finished database, check that it fits the model and the units, and describe it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from darwinlm.database.blocks import block_file
from darwinlm.runtime.artifact import KEY, MANIFEST, StageFolder, damaged, open_tensors, read_json
from darwinlm.runtime.errors import ArtifactError

TEXT = "text.json"
VERSION = 7
"""Raised when the same inputs give another database."""


@dataclass(frozen=True)
class ModuleCurves:
    """Error curves of one module.

    Attributes:
        variant: Query heads per KV group; 0 stands for any query heads, and an MLP has 1.
        errors: [p + 1], squared output error of keeping the first k columns, relative to the output's energy.
        losses: [p + 1], estimated KL to the dense model in nats per token; None without output gradients.
    """

    block: int
    kind: str
    variant: int
    errors: Tensor
    losses: Tensor | None = None


def find_database(path: Path) -> StageFolder:
    """The database in a folder, which is the database itself or the output folder of `darwinlm prune`.

    Raises:
        ArtifactError: There is none, it isn't finished, or its files were changed.
    """
    if not path.is_dir():
        raise ArtifactError(f"there is no folder {path}: give the --out folder of darwinlm prune")
    folders = [folder for folder in (path / "stages" / "database", path) if (folder / KEY).is_file()]
    key = read_json(folders[0] / KEY) if folders else None
    if not isinstance(key, dict) or key.get("stage") != "database":
        raise ArtifactError(
            f"{path} holds no database: build one with darwinlm prune MODEL --until database --out {path}"
        )
    stage = StageFolder(folders[0], key)
    if not (stage.folder / MANIFEST).is_file():
        raise ArtifactError(f"the database in {path} isn't finished: rerun the command that created it to resume")
    if not stage.is_complete():
        raise damaged(stage.folder / MANIFEST, f"its key isn't that of {KEY}")
    return stage


def check_fits(stage: StageFolder, path: Path, *, model: str, source: str, units: str) -> None:
    """Refuse a database of another model, given by its digest and its name for messages, or for other attention units.

    `path` is as the user gave it. Raises ArtifactError, also for a database by another version.
    """
    if stage.key.get("inputs", {}).get("dense") != model:
        raise ArtifactError(
            f"the database in {path} was built from another model than {source} (other weights or configuration): "
            "build one for this model, or prune the original model"
        )
    if stage.key.get("version") != VERSION:
        raise ArtifactError(
            f"the database in {path} was built by another version of darwinlm, whose databases differ: rebuild it "
            f"with darwinlm prune {shlex.quote(source)} --until database --out {shlex.quote(str(path))}"
        )
    if units_of(stage) != units:
        raise ArtifactError(
            f"the database in {path} was built for units.attention={units_of(stage)}, not {units}: set that, or "
            "build a database for these units"
        )


def units_of(stage: StageFolder) -> Any:
    """Attention units that a database was built for."""
    return stage.key.get("settings", {}).get("units.attention")


def calibration_documents(stage: StageFolder) -> set[str]:
    """Hashes of the documents that the database was calibrated on. Raises ArtifactError."""
    record = read_json(stage.folder / TEXT)
    if not isinstance(record, dict) or not isinstance(record.get("documents"), list):
        raise damaged(stage.folder / TEXT, "it lists no documents")
    return set(record["documents"])


def read_curves(stage: StageFolder) -> Iterator[ModuleCurves]:
    """Error curves of every module. Raises ArtifactError."""
    for block in range(sum(1 for _ in stage.folder.glob("block_*.safetensors"))):
        with open_tensors(stage.folder / block_file(block)) as stored:
            wanted = [name for name in stored.keys() if name.endswith((".errors", ".losses"))]  # noqa: SIM118
            named = {name: stored.get_tensor(name) for name in wanted}
        curves = {name: tensor.sum(dim=0) if tensor.ndim == 2 else tensor for name, tensor in sorted(named.items())}
        for name, whole in curves.items():
            if name.endswith(".errors"):
                kind, variant, _ = name.split(".")
                relative = whole / whole[0] if whole[0] else whole
                yield ModuleCurves(block, kind, int(variant), relative, curves.get(f"{kind}.{variant}.losses"))


def describe(stage: StageFolder) -> dict[str, Any]:
    """Summary of a database. Raises ArtifactError."""
    blocks = list(stage.folder.glob("block_*.safetensors"))
    text = read_json(stage.folder / TEXT)
    return {
        "folder": str(stage.folder),
        "blocks": len(blocks),
        "bytes": sum(path.stat().st_size for path in blocks),
        "units": units_of(stage),
        "settings": {"metric": stage.key.get("settings", {}).get("database.metric")},
        "calibration": {name: text.get(name) for name in ("source", "tokens")},
    }
