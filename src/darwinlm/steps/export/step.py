"""Export: save the final model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from darwinlm.formats.transformers.saved import RECORD, check_saved, recorded_digests, save_model, saved_digests
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import is_custom
from darwinlm.model.families.files import CARD
from darwinlm.model.surgery.depth import in_family_class
from darwinlm.report.wording import without_folders
from darwinlm.runtime.artifact import check_written, what_changed, write_json
from darwinlm.runtime.mapped import in_file
from darwinlm.runtime.step import Stage, Task
from darwinlm.runtime.version import VERSION
from darwinlm.steps.refit.step import Refitted
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.stitch.stitch import as_dtype
from darwinlm.steps.text.sequences import TokenSequences

FILES = "export.json"
"""Hashes of the files in `model/`, which is outside of the stage's folder."""
MODEL = "model"


@dataclass(frozen=True)
class Exported:
    """The final model."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    custom_code: bool

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return self.checkpoint.folder


def _save(
    task: Task, dense: Checkpoint, teacher: Checkpoint, final: Stitched | Refitted, validation: TokenSequences
) -> None:
    """Save the final model into `model/` of the output folder."""
    for each in (dense, teacher):
        each.check_unchanged()
    folder = task.context.folder / MODEL
    if (folder / RECORD).is_file():
        check_written(folder, {RECORD, CARD, *recorded_digests(folder / RECORD)})
    model = as_dtype(final.model(dense.dtype, keep=partial(in_file, folder=task.folder)), dense.dtype)
    model = in_family_class(model, final.checkpoint)
    save_model(model, folder, tokenizer=dense.tokenizer(), source=teacher.folder)
    check_saved(model, folder, validation.tokens[:2, :128])
    recipe = without_folders(task.recipe.model_dump(mode="json"))
    write_json(folder / RECORD, {"version": VERSION, "recipe": recipe, "files": saved_digests(folder)})
    write_json(task.folder / FILES, {"files": saved_digests(folder)})


def _read(task: Task, dense: Checkpoint) -> Exported:
    checkpoint = Checkpoint.open(task.context.folder / MODEL)
    return Exported(checkpoint, dense.dtype, is_custom(checkpoint.config))


def _changed(task: Task) -> str | None:
    """The first file of an exported model that isn't as recorded, with the reason: users may move, delete or edit them.

    Raises ArtifactError if the record is damaged.
    """
    record, folder = task.folder / FILES, task.context.folder / MODEL
    if not record.is_file():
        return f"{record} is missing"
    found = ((folder / name, what_changed(folder / name, digest)) for name, digest in recorded_digests(record).items())
    return next((f"{path}: {wrong}" for path, wrong in found if wrong), None)


EXPORT = Stage("export", _save, _read, version=4, writes="hashes of the files in model/", spoiled=_changed)
"""The final model in `model/` of the output folder."""
