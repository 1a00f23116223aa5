"""Find a finished database, and check that it fits the model and the units."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from darwinlm.runtime.artifact import KEY, MANIFEST, StageFolder, damaged, read_json
from darwinlm.runtime.errors import ArtifactError

TEXT = "text.json"
VERSION = 8
"""Raised when the same inputs give another database."""


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
