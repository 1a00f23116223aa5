"""Entry point of the export, for Python and the command."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from darwinlm.evaluation.read_texts import reading_settings
from darwinlm.formats.format import WriteOptions, check_target
from darwinlm.formats.gguf.gguf_format import GGUF
from darwinlm.formats.logits_check import ExportReport
from darwinlm.formats.resolve import resolve_finished
from darwinlm.report.summary import FILE
from darwinlm.runs.finished import read_summary
from darwinlm.runtime.amounts import size
from darwinlm.runtime.artifact import fresh_folder
from darwinlm.runtime.errors import ArtifactError, ExportError
from darwinlm.runtime.lock import hold_target
from darwinlm.runtime.shell import word
from darwinlm.steps.text.check_inputs import check_inputs
from darwinlm.steps.text.reading import with_answers

LONGEST = 256
"""Most tokens of the texts with which a file of a model that reads is checked."""


def export_model(
    model: Path,
    out: Path,
    *,
    quantisation: str = "f16",
    tokenizer_from: Path | None = None,
    unchecked: bool = False,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> ExportReport:
    """Write a model or a finished run as a GGUF file, and check it. A failed export leaves no files.

    `model` is a folder, a GGUF file or a hub id. The report is saved next to the file `out`. `tokenizer_from` is a GGUF
    file whose tokenizer is copied. `unchecked` leaves out the check in llama.cpp.

    Raises:
        ModelError, ExportError, MissingExtraError, StorageError, BusyError: See `darwinlm.runtime.errors`.
    """
    if tokenizer_from is not None and not tokenizer_from.is_file():
        raise ExportError(f"--tokenizer-from {tokenizer_from}: there is no such file")
    check_target(GGUF, out, model, tokenizer_from, overwrite=overwrite)
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    with hold_target(out), fresh_folder(parent / f".{out.name}.work") as work:
        checkpoint = resolve_finished(str(model), work)
        check_target(GGUF, out, checkpoint.folder, overwrite=overwrite)
        tokenizer_from = tokenizer_from or (model if GGUF.holds(model) else None)
        settings = reading_settings(checkpoint, LONGEST)
        checkpoint = with_answers(checkpoint, settings)
        inputs = check_inputs(checkpoint, settings)
        report = GGUF.write(checkpoint, out, WriteOptions(quantisation, tokenizer_from, unchecked, inputs), say)
    if beyond := _beyond_bound(model, report.bytes):
        say(beyond)
    return report


def _beyond_bound(model: Path, n_bytes: int) -> str:
    """Says that a file exceeds the bound that a run was pruned to; empty if it doesn't, or there is none."""
    with suppress(ArtifactError):  # a folder of a model, or a run of another version
        budget = read_summary(model / FILE).budget if (model / FILE).is_file() else None
        if budget is not None and budget.kind == "file" and n_bytes > budget.upper:
            return (
                f"this file has {size(n_bytes)}, more than the {size(budget.upper)} that the run was pruned to; "
                f"darwinlm show {word(model)} lists the types that keep it"
            )
    return ""
