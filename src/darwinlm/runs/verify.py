"""Verification of a run's output folder (file hashes, the chain of stages, sizes, budget) and of an export's files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from darwinlm.export.folder import REPORT
from darwinlm.export.gguf import report_beside
from darwinlm.export.hf import recorded_digests, what_changed
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.importing.convert import REPORT as IMPORT_REPORT
from darwinlm.report.summary import FILE, Summary, read_summary
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
)
from darwinlm.runtime.errors import ArtifactError, DarwinLMError
from darwinlm.stages.export import FILES
from darwinlm.surgery.stitch import block_parameters

CHAIN = {"stitched": "stitch", "refit": "refit", "recover": "recover"}
"""Fields of the export's key, and the stages whose digests they hold."""


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
    for record in (*beside, path / REPORT, path / IMPORT_REPORT):
        if record.is_file():
            return list(_files(path, record, "", "run the command that wrote it again, with --overwrite"))
    raise ArtifactError(
        f"{path} is neither a run nor an export: give the --out folder of darwinlm prune, recover, export or import, "
        "or a GGUF file with its .export.json beside it"
    )


def _run(folder: Path) -> list[Finding]:
    findings = [_stage(stage) for stage in sorted((folder / STAGES).glob("*")) if stage.is_dir()]
    if not (folder / f"{SWEEP}.json").is_file():
        return [*findings, *_model(folder)]
    for member in sorted(path.parent for path in folder.glob(f"*/{MARKER}")):
        findings += [replace(finding, what=f"{member.name}: {finding.what}") for finding in _run(member)]
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
    try:
        yield from _files(model, export / FILES, "model/", "rerun the run's command, which writes the model again")
        yield from _sizes(model, read_summary(folder / FILE))
    except DarwinLMError as error:
        yield Finding("model", str(error))


def _files(folder: Path, record: Path, prefix: str, remedy: str) -> Iterator[Finding]:
    """Compare files with the hashes in a record; `prefix` stands before their names, and `remedy` after differences.

    A `folder` that is a file itself, which may have been renamed, is compared with the record's only hash.
    """
    for name, digest in recorded_digests(record).items():
        wrong = what_changed(folder if folder.is_file() else folder / name, digest)
        yield Finding(f"{prefix}{name}", wrong and f"{wrong}: {remedy}")


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
