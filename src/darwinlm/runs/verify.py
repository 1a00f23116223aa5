"""Verification of a run's output folder (file hashes, the chain of stages) and of an export's files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from darwinlm.export.check import REPORT
from darwinlm.export.gguf import report_beside
from darwinlm.export.hf import recorded_digests
from darwinlm.families.files import CARD
from darwinlm.report.summary import FILE, read_summary
from darwinlm.runs.sweep import SWEEP
from darwinlm.runtime.artifact import (
    KEY,
    MANIFEST,
    MARKER,
    STAGES,
    StageFolder,
    digest_of,
    read_json,
    read_manifest,
    what_changed,
)
from darwinlm.runtime.errors import ArtifactError, DarwinLMError
from darwinlm.runtime.lock import is_ours
from darwinlm.stages.database import DATABASE
from darwinlm.stages.export import EXPORT, FILES


@dataclass(frozen=True)
class Finding:
    """Result of one check: the difference from the record, or None."""

    what: str
    wrong: str | None = None


def verify(path: Path) -> list[Finding]:
    """Check a finished run by its output folder, or an export by its folder or GGUF file.

    Raises ArtifactError if the path is neither, or an export's record of its files is damaged.
    """
    if (path / MARKER).is_file() and (path / STAGES).is_dir():
        return _run(path)
    beside = [report_beside(path)] if path.name else []  # "." and "/" have no name
    for record in (*beside, path / REPORT):
        if record.is_file():
            return list(_files(path, record, "", "run the command that wrote it again, with --overwrite"))
    raise ArtifactError(
        f"{path} is neither a run nor an export: give the --out folder of darwinlm prune, recover, export or import, "
        "or a GGUF file with its .export.json beside it"
    )


def _run(folder: Path, above: Path | None = None) -> list[Finding]:
    stages = [stage for stage in sorted((folder / STAGES).glob("*")) if stage.is_dir()]
    findings = [finding for stage in stages for finding in _stage(stage, above)]
    if (folder / FILE).is_file():
        there = {path.name for place in (folder, above) if place for path in (place / STAGES).glob("*")}
        findings += [
            Finding(f"stage {taken.name}", "its folder is missing: rerun the same command to do it again")
            for taken in read_summary(folder / FILE).stages
            if taken.name not in there
        ]
    if not (folder / f"{SWEEP}.json").is_file():
        return [*findings, *_model(folder)]
    for member in sorted(path.parent for path in folder.glob(f"*/{MARKER}")):
        findings += [replace(finding, what=f"{member.name}: {finding.what}") for finding in _run(member, folder)]
    return findings


def _stage(stage: Path, above: Path | None) -> Iterator[Finding]:
    """Compare the files of a stage with their hashes, its key with the initial one, and its inputs with their stages.

    Stages that a size shares with others lie in the folder `above`.
    """
    title = f"stage {stage.name}"
    if not (stage / MANIFEST).is_file():
        yield Finding(title, "it isn't finished")
        return
    try:
        key = read_manifest(stage).key
        if not StageFolder(stage, key).is_complete() or read_json(stage / KEY) != key:
            yield Finding(title, f"{MANIFEST} and {KEY} have different keys")
            return
        for name in _unknown(stage, {*read_manifest(stage).files, MANIFEST, KEY}):
            yield Finding(title, f"{name} was not written by the run: remove it")
            return
        for name, digest in key.get("inputs", {}).items():
            places = [stage.parent / name, *([above / STAGES / name] if above else [])]
            found = next((read_manifest(place).key for place in places if (place / MANIFEST).is_file()), {})
            # A database may be another run's.
            if found.get("stage") == name != DATABASE.name and digest_of(found) != digest:
                yield Finding(f"{stage.name} follows {name}", f"it belongs to another result of {name}")
                return
    except DarwinLMError as error:
        yield Finding(title, str(error))
        return
    yield Finding(title)


def _model(folder: Path) -> Iterator[Finding]:
    """Compare the model with the record of its export."""
    export, model = folder / STAGES / EXPORT.name, folder / "model"
    if not (export / MANIFEST).is_file() or not (folder / FILE).is_file():
        yield Finding("model", "the run hasn't written it yet: rerun the same darwinlm prune command")
        return
    try:
        yield from _files(model, export / FILES, "model/", "rerun the run's command, which writes the model again")
    except DarwinLMError as error:
        yield Finding("model", str(error))


def _files(folder: Path, record: Path, prefix: str, remedy: str) -> Iterator[Finding]:
    """Compare files with the hashes in a record; `prefix` stands before their names, and `remedy` after differences.

    A `folder` that is a file itself, which may have been renamed, is compared with the record's only hash.
    """
    for name, digest in recorded_digests(record).items():
        wrong = what_changed(folder if folder.is_file() else folder / name, digest)
        yield Finding(f"{prefix}{name}", wrong and f"{wrong}: {remedy}")
    if folder.is_dir():
        known = {*recorded_digests(record), CARD, REPORT}
        yield from (
            Finding(f"{prefix}{name}", "it isn't part of the model: remove it") for name in _unknown(folder, known)
        )


def _unknown(folder: Path, known: set[str]) -> list[str]:
    """Paths of the files in a folder that aren't known, hidden ones included, without our own left-over ones."""
    paths = [path for path in folder.rglob("*") if path.is_symlink() or not (path.is_dir() or is_ours(path))]
    return sorted({path.relative_to(folder).as_posix() for path in paths} - known)
