"""Export: the final model as a folder for transformers, verified after it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from darwinlm.artifact import file_digest, read_json, write_json
from darwinlm.compute import saved_dtype
from darwinlm.export.hf import check_saved, save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import is_custom
from darwinlm.run import Run
from darwinlm.stages.recover import Recovered
from darwinlm.stages.refit import Refitted
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import Texts
from darwinlm.surgery.stitch import as_dtype


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
    record = run.path("export") / "export.json"
    with run.stage("export", key, "export") as (stage, work):
        # Users may move or delete the exported files.
        intact = not work and (folder / "config.json").is_file() and _digests(folder) == read_json(record)["files"]
        if not intact:
            model = as_dtype((recovered or refitted or stitched).model(), dtype)
            save_model(model, folder, tokenizer=run.checkpoint.tokenizer(), source=run.teacher.folder)
            check_saved(model, folder, texts["validation"].tokens[:2, :128])
            write_json(
                stage.folder / "export.json", {"files": _digests(folder), "custom_code": is_custom(model.config)}
            )
            if not work:
                stage.finish(seconds=0.0)
        opened = Checkpoint.open(folder)
    return Exported(folder, dtype, is_custom(opened.config), opened.digest)


def _digests(folder: Path) -> dict[str, str]:
    weights = [*folder.glob("*.safetensors"), folder / "config.json"]
    return {path.name: file_digest(path) for path in sorted(weights)}
