"""Page with the predicted sizes of a model, from its database alone: `darwinlm inspect --html`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from darwinlm.database.finished import describe, find_database, read_curves, units_of
from darwinlm.database.store import DatabaseReader
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import UnitsSettings
from darwinlm.report import wording
from darwinlm.report.sizes import sizes_page
from darwinlm.runtime.artifact import KEY, MANIFEST, STAGES, StageFolder, damaged, read_record, write_text
from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.lock import hold_target
from darwinlm.runtime.places import check_output
from darwinlm.search.predict.module_losses import predicted_sizes
from darwinlm.search.problem.cost import parameter_costs
from darwinlm.search.problem.space import SearchSpace
from darwinlm.stages.plan import FILE, PLAN

SHARES = tuple(share / 20 for share in range(4, 21))
"""Shares of the block parameters, smallest first; below a fifth the estimates are meaningless."""

SECONDS = 3.0
"""Time limit for the choice of levels of each size."""


def write_sizes(folder: str | Path, out: str | Path) -> int:
    """Predict sizes of a model from its database and write the page `out`, without reading the model.

    `folder` is the output folder of `darwinlm database` or `darwinlm prune`. Returns the number of sizes. Raises
    ArtifactError if there is no finished database, it predicts no losses, or the plan beside it is missing, damaged or
    of another model; StorageError, BusyError.
    """
    folder, out = Path(folder).expanduser(), Path(out).expanduser()
    check_output(out, "--html", [folder])
    with hold_target(out):
        stage = find_database(folder)
        plan = _plan(stage, folder)
        checkpoint, units, outside, given, files = _model(plan)
        reader = DatabaseReader(stage.folder, checkpoint, units)
        _check_same_model(stage, reader, folder)
        space = SearchSpace(reader.modules)
        cost = parameter_costs(space)
        shares = [share for share in SHARES if share * cost.dense >= cost.smallest]
        sizes = predicted_sizes(space, reader, shares, seconds=SECONDS)
        if not sizes:
            raise ArtifactError(
                f"the database in {folder} predicts no losses (it was built with database.saliency=output): build one "
                "with database.saliency=loss"
            )
        about = describe(stage)["calibration"]
        calibration = f"{about['tokens']:,} tokens of {wording.short_source(about['source'])}"
        name = wording.plain_name(given) if given else checkpoint.family.model_type
        command = {"model": given or "MODEL", "database": str(folder), "text": str(about["source"] or "TEXT")}
        write_text(out, sizes_page(name, checkpoint, reader, outside, sizes, calibration, command, files))
        return len(sizes)


def _plan(stage: StageFolder, folder: Path) -> StageFolder:
    """Plan of the run that built a database. Raises ArtifactError."""
    candidates = [stage.folder.parent / PLAN.name, *sorted(folder.glob(f"*/{STAGES}/{PLAN.name}"))]
    path = next((plan for plan in candidates if (plan / MANIFEST).is_file()), None)
    if path is None:
        raise ArtifactError(
            f"{folder} has no plan with the model's sizes beside the database: give the output folder of "
            "darwinlm database or darwinlm prune"
        )
    plan = StageFolder(path, read_record(path / KEY))
    if not plan.is_complete():
        raise damaged(path / MANIFEST, f"its key differs from {KEY}")
    return plan


def _model(plan: StageFolder) -> tuple[Checkpoint, UnitsSettings, int, str | None, dict[str, int]]:
    """Configuration and units of a plan, number of parameters outside the blocks, the model as named, and its files.

    Raises ArtifactError.
    """
    record: dict[str, Any] = read_record(plan.folder / FILE)
    try:
        units = UnitsSettings.model_validate(record["units"])
        outside = int(record["params_outside_blocks"])
        text = json.dumps(record["config"])
        files = {str(name): int(size) for name, size in record.get("files", {}).items()}
    except (ValidationError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise damaged(plan.folder / FILE, f"it lacks the model's sizes: {type(error).__name__}") from error
    with tempfile.TemporaryDirectory(prefix="darwinlm-") as work:
        (Path(work) / "config.json").write_text(text, encoding="utf-8")
        checkpoint = Checkpoint.describe(Path(work))
    given = record.get("model")
    return checkpoint, units, outside, given if isinstance(given, str) else None, files


def _check_same_model(stage: StageFolder, reader: DatabaseReader, folder: Path) -> None:
    """Refuse a plan with other modules than the database. Raises ArtifactError."""
    widths: dict[tuple[int, str], int] = {}
    for curve in read_curves(stage):
        key = (curve.block, curve.kind)
        widths[key] = max(widths.get(key, 0), len(curve.errors) - 1)
    cut = [(module.block, module.kind) for module in reader.modules if len(module.levels) > 1]
    same = all(widths.get(key) == reader.shapes[key].width for key in cut) and widths.keys() <= reader.shapes.keys()
    if not same or units_of(stage) != reader.units.attention:
        raise ArtifactError(
            f"the plan and the database in {folder} belong to different models: rerun the command that made them"
        )
