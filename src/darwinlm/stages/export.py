"""Export: the final model as a folder for transformers, verified after it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from darwinlm.export.hf import check_saved, recorded_digests, save_model, saved_digests, what_changed
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import is_custom
from darwinlm.recipe.settled import saved_dtype
from darwinlm.run import Run
from darwinlm.runtime.artifact import StageFolder, read_manifest, write_json
from darwinlm.stages.recover import Recovered
from darwinlm.stages.refit import Refitted
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import Texts
from darwinlm.surgery.depth import in_family_class
from darwinlm.surgery.stitch import as_dtype

FILES = "export.json"
"""Hashes of the files in `model/`, which is outside of the stage's folder."""


@dataclass(frozen=True)
class Exported:
    """The final model."""

    folder: Path
    dtype: torch.dtype
    custom_code: bool
    digest: str


def export_stage(
    run: Run, texts: Texts, stitched: Stitched, refitted: Refitted | None, recovered: Recovered | None = None
) -> Exported:
    """Save the final model into `model/` of the output folder.

    Raises:
        CheckpointError: The saved model differs from the model in memory.
        StorageError: The disk is full.
    """
    dtype = saved_dtype(run.recipe, run.checkpoint.dtype)
    folder = run.folder / "model"
    key = {
        "stitched": stitched.stage.digest,
        "refit": refitted.stage.digest if refitted else None,
        "recover": recovered.stage.digest if recovered else None,
        "dtype": str(dtype),
    }
    with run.stage("export", key, "export") as (stage, work):
        changed = None if work else changed_file(folder, stage)
        if changed:
            run.reporter.say(f"export: {changed}, so the model is written again")
        if work or changed:
            model = as_dtype((recovered or refitted or stitched).model(), dtype)
            model = in_family_class(model, stitched.checkpoint)
            save_model(model, folder, tokenizer=run.checkpoint.tokenizer(), source=run.teacher.folder)
            check_saved(model, folder, texts["validation"].tokens[:2, :128])
            record_files(folder, stage)
            if not work:
                stage.finish(**read_manifest(stage.folder).facts)
        opened = Checkpoint.open(folder)
    return Exported(folder, dtype, is_custom(opened.config), opened.digest)


def record_files(folder: Path, stage: StageFolder) -> None:
    """Record hashes of an exported model's files in its stage. Raises StorageError."""
    write_json(stage.folder / FILES, {"files": saved_digests(folder)})


def changed_file(folder: Path, stage: StageFolder) -> str | None:
    """The first file of an exported model that isn't as recorded, with the reason: users may move, delete or edit them.

    Raises ArtifactError if the record is damaged.
    """
    record = stage.folder / FILES
    if not record.is_file():
        return f"{record} is missing"
    found = ((folder / name, what_changed(folder / name, digest)) for name, digest in recorded_digests(record).items())
    return next((f"{path}: {wrong}" for path, wrong in found if wrong), None)
