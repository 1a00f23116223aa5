"""Verification of a run's output folder: file hashes, the chain of stages, sizes and budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from darwinlm.artifact import (
    KEY,
    MANIFEST,
    MARKER,
    STAGES,
    StageFolder,
    digest_of,
    file_digest,
    read_json,
    read_manifest,
    read_record,
)
from darwinlm.errors import ArtifactError, DarwinLMError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.report.summary import FILE, Summary, read_summary
from darwinlm.surgery.stitch import block_parameters

CHAIN = {"stitched": "stitch", "refit": "refit", "recover": "recover"}
"""Fields of the export's key, and the stages whose digests they hold."""


@dataclass(frozen=True)
class Finding:
    """Result of one check: the difference from the record, or None."""

    what: str
    wrong: str | None = None


def verify_run(folder: Path) -> list[Finding]:
    """Check a finished run. Raises ArtifactError if the folder isn't the output folder of a run."""
    if not (folder / MARKER).is_file() or not (folder / STAGES).is_dir():
        raise ArtifactError(f"{folder} isn't the output folder of a run: give the --out folder of darwinlm prune")
    findings = [_stage(stage) for stage in sorted((folder / STAGES).iterdir()) if stage.is_dir()]
    findings += list(_model(folder))
    return findings


def _stage(stage: Path) -> Finding:
    """Compare the files of a stage with their hashes, and its key with the initial one."""
    title = f"stage {stage.name}"
    if not (stage / MANIFEST).is_file():
        return Finding(title, "it isn't finished")
    try:
        key = read_manifest(stage).key
        if not StageFolder(stage, key).is_complete() or read_json(stage / KEY) != key:
            return Finding(title, f"{MANIFEST} and {KEY} have different keys")
    except DarwinLMError as error:
        return Finding(title, str(error))
    return Finding(title)


def _model(folder: Path) -> Iterator[Finding]:
    """Compare the model with the record of its export, and the summary with the model."""
    export, model = folder / STAGES / "export", folder / "model"
    if not (export / MANIFEST).is_file() or not (folder / FILE).is_file():
        yield Finding("model", "the run hasn't written it yet: rerun the same darwinlm prune command")
        return
    key = read_manifest(export).key
    for field, name in CHAIN.items():
        if key.get(field) is not None and (folder / STAGES / name / MANIFEST).is_file():
            same = digest_of(read_manifest(folder / STAGES / name).key) == key[field]
            yield Finding(f"export follows {name}", None if same else f"it belongs to another result of {name}")
    yield from _files(model, export)
    try:
        yield from _sizes(model, read_summary(folder / FILE))
    except DarwinLMError as error:
        yield Finding("model", str(error))


def _files(model: Path, export: Path) -> Iterator[Finding]:
    if not (export / "export.json").is_file():
        return  # a recovery without pruning stores no hashes of its model
    files = read_record(export / "export.json").get("files", {})
    for name, digest in files.items():
        there = (model / name).is_file()
        wrong = None if there and file_digest(model / name) == digest else "it was changed after the export"
        yield Finding(f"model/{name}", wrong if there else "it is missing")


def _sizes(model: Path, summary: Summary) -> Iterator[Finding]:
    """Recount the parameters, and compare them with the budget."""
    checkpoint = Checkpoint.open(model)
    made, stated, budget = checkpoint.skeleton(), summary.saved, summary.budget
    counted = sum(parameter.numel() for parameter in made.parameters())
    blocks = block_parameters(made, checkpoint.family.layers)
    yield Finding("parameters", None if counted == stated.params else f"{counted:,} exist, {stated.params} are stated")
    if budget is None:  # pruned elsewhere
        return
    wrong = f"{blocks:,} exist, {budget.block_params} are stated"
    yield Finding("block parameters", None if blocks == budget.block_params else wrong)
    wrong = f"{budget.used:,.10g} of {budget.upper:,.10g} are used"
    yield Finding("budget", None if budget.used <= budget.upper else wrong)
    if budget.kind == "params":
        wrong = f"{counted:,} of {budget.upper:,} are used"
        yield Finding("budget in parameters", None if counted <= budget.upper else wrong)
