"""Verification of a run's output folder (file hashes, the chain of stages) and of an export's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from darwinlm.formats.gguf.checked_file import report_path
from darwinlm.formats.logits_check import REPORT
from darwinlm.formats.transformers.saved import recorded_digests
from darwinlm.model.families.files import CARD
from darwinlm.runs.sweep import PAGE
from darwinlm.runtime.artifact import MANIFEST, MARKER, STAGES, StageFolder, read_manifest, result_digest, what_changed
from darwinlm.runtime.errors import ArtifactError, DarwinLMError
from darwinlm.steps.export.step import FILES, Export

Finding = tuple[str, str | None]
"""What was compared with its record, and the difference, or None."""


def verify(path: Path) -> list[Finding]:
    """Check a finished run by its output folder, or an export by its folder or GGUF file.

    Raises ArtifactError if the path is neither, or an export's record of its files is damaged.
    """
    if (path / MARKER).is_file() and (path / STAGES).is_dir():
        members = sorted(marker.parent for marker in path.glob(f"*/{MARKER}"))
        of_members = [(f"{run.name}: {item}", problem) for run in members for item, problem in _run(run, path)]
        return [*_run(path, path), *of_members]
    reports = [report_path(path)] if path.name else []  # "." and "/" have no name
    for record in (*reports, path / REPORT):
        if record.is_file():
            return list(_files(path, record, "run the command that wrote it again, with --overwrite"))
    raise ArtifactError(
        f"{path} is neither a run nor an export: give the --out folder of darwinlm prune, recover, export or import, "
        "or a GGUF file with its .export.json beside it"
    )


def _run(folder: Path, parent: Path) -> Iterator[Finding]:
    """Stages of a run and its model; stages that a size shares with others lie in the folder `parent`."""
    for stage in sorted((folder / STAGES).glob("*/")):
        yield f"stage {stage.name}", _stage(stage, parent)
    export = folder / STAGES / Export.name
    if (export / MANIFEST).is_file():
        findings = _files(folder / "model", export / FILES, "rerun the run's command, which writes the model again")
        try:
            yield from ((f"model/{item}", problem) for item, problem in findings)
        except DarwinLMError as error:
            yield "model", str(error)
    elif not (folder / PAGE).is_file():
        yield "model", "the run hasn't written it yet: rerun the same darwinlm prune command"


def _stage(stage: Path, parent: Path) -> str | None:
    """Compare the files of a stage with their hashes, and its inputs with their stages."""
    if not (stage / MANIFEST).is_file():
        return "it isn't finished"
    try:
        key = read_manifest(stage).key
        StageFolder(stage, key).is_complete()
        inputs = key.get("inputs")
        for source in inputs.values() if isinstance(inputs, dict) else ():
            if not isinstance(source, dict) or "step" not in source:
                continue
            name = str(source["step"])
            places = (stage.parent / name, parent / STAGES / name)
            manifest = next((read_manifest(place) for place in places if (place / MANIFEST).is_file()), None)
            if (
                manifest is not None
                and manifest.key.get("stage") == name
                and result_digest(manifest.key, manifest.reads) != source.get("digest")
            ):
                return f"it follows another result of {name}"
    except DarwinLMError as error:
        return str(error)
    return None


def _files(folder: Path, record: Path, remedy: str) -> Iterator[Finding]:
    """Compare files with the hashes in a record; `remedy` stands after differences.

    A `folder` that is a file itself, which may have been renamed, is compared with the record's only hash.
    """
    recorded = recorded_digests(record)
    for name, digest in recorded.items():
        problem = what_changed(folder if folder.is_file() else folder / name, digest)
        yield name, problem and f"{problem}: {remedy}"
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    yield from ((name, "it isn't part of the model: remove it") for name in sorted(present - {*recorded, CARD, REPORT}))
