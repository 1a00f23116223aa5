"""Data sets of the known tasks from local files, in the format of the harness's tasks.

Paths are `DIR/TASK/SPLIT.jsonl` or `.jsonl.gz`; a suffix after the split is allowed (`train_1996.jsonl.gz`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from darwinlm.evaluation.suites import KNOWN, Wanted
from darwinlm.runtime.errors import DataError, RecipeError
from darwinlm.text.files import json_records

Rows = list[dict[str, Any]]


def read_task(folder: Path, wanted: Wanted) -> tuple[dict[str, Rows], str]:
    """Checked rows of the scored split and, with shots, of the split for examples.

    Also returns a remark, which is empty unless the latter isn't the official one. Raises RecipeError if the file
    layout of this task isn't known or the folder is missing; DataError if a file or a row is wrong.
    """
    if wanted.task not in KNOWN:
        raise RecipeError(
            f"--data-dir has no layout for the task '{wanted.task}'; known are {', '.join(KNOWN)}. Leave --data-dir "
            "out to let the harness fetch its own data"
        )
    if not folder.is_dir():
        raise RecipeError(f"--data-dir {folder}: there is no such folder")
    known = KNOWN[wanted.task]
    splits = {known.split: _read(_required(folder, wanted.task, known.split), known.fields)}
    if not wanted.shots:
        return splits, ""
    there = (name for name in known.pools if _find(folder / wanted.task, name))
    name = next(there, known.pools[0])
    pool = _required(folder, wanted.task, name)
    splits[name] = _read(pool, known.fields)
    _check_shots(pool, wanted, splits[known.split], splits[name])
    return splits, "" if pool.name.split(".")[0] == known.pools[0] else f"examples from {pool.name}"


def _check_shots(pool: Path, wanted: Wanted, scored: Rows, examples: Rows) -> None:
    """Check that there are enough examples for the shots, for each subject of the task."""
    by_subject = KNOWN[wanted.task].by_subject
    for subject in sorted({str(row["subject"]) for row in scored}) if by_subject else [""]:
        count = sum(not by_subject or str(row["subject"]) == subject for row in examples)
        if count < (wanted.shots or 0):
            where = f" of {subject}" if subject else ""
            raise DataError(
                f"{pool} has {count} examples{where}, but '{wanted.task}' needs {wanted.shots} for its shots"
            )


def _find(folder: Path, split: str) -> Path | None:
    names = [f"{split}{middle}.jsonl{end}" for middle in ("", "[._-]*") for end in ("", ".gz")]
    return next((path for name in names for path in sorted(folder.glob(name))), None)


def _required(folder: Path, task: str, split: str) -> Path:
    path = _find(folder / task, split)
    if path is None:
        raise DataError(
            f"{folder / task} holds no {split}.jsonl or {split}.jsonl.gz, which the task '{task}' needs: put it there, "
            "or leave --data-dir out to let the harness fetch its own data"
        )
    return path


def _read(path: Path, fields: tuple[str, ...]) -> Rows:
    rows: Rows = []
    for where, row in json_records(path):
        missing = [name for name in fields if name not in row]
        if missing:
            raise DataError(
                f"{where}: the field{'s' * (len(missing) > 1)} {', '.join(missing)} "
                f"{'are' if len(missing) > 1 else 'is'} missing; the task reads {', '.join(fields)}, the row has "
                f"{', '.join(row)}"
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty")
    return rows
