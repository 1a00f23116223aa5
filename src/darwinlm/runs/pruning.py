"""Prune a model to one size: `darwinlm.prune` and its result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Unpack

from darwinlm import pipeline
from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.evaluation.measures.named import MeasureRequest
from darwinlm.pipeline import ORDER, REPORT
from darwinlm.recipe import Recipe, RecipeOptions, load_recipe, options
from darwinlm.recipe.options import option_types
from darwinlm.report.summary import FILE, Summary
from darwinlm.runs.bound import parse_within
from darwinlm.runs.finished import read_summary, summary_of
from darwinlm.runs.given_paths import output_folder
from darwinlm.runs.loaded import Model, load
from darwinlm.runs.opening import check_inputs, named_here, open_run
from darwinlm.runs.own_scores import OwnScores
from darwinlm.runs.same_model import same_model, same_value
from darwinlm.runs.shown import Shown
from darwinlm.runs.tracked import tell_models, tracked
from darwinlm.runtime.artifact import read_record, validated
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError, RecipeError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.run import Ended, Run
from darwinlm.runtime.signatures import spelled_out
from darwinlm.runtime.torch_state import in_usual_state
from darwinlm.runtime.tracking import check_tracker
from darwinlm.steps.budget.kinds import BUDGETS


@dataclass(frozen=True)
class Result(Shown):
    """A run in its output folder: the smaller model, the report, and its figures."""

    folder: Path

    @property
    def model(self) -> Path:
        """Folder of the smaller model."""
        return self.folder / "model"

    @property
    def report(self) -> Path:
        """The page with the report."""
        return self.folder / "report.html"

    @cached_property
    def summary(self) -> Summary:
        """The figures, as in summary.json. Raises ArtifactError if the run ended before its report."""
        return read_summary(summary_of(self.folder))

    def load(self, *, device: str = "auto", dtype: str = "auto") -> Model:
        """Load the smaller model, as `darwinlm.load` with the run's folder does. Raises as it does."""
        return load(self.folder, device=device, dtype=dtype)

    def generate(self, prompt: str, *, max_tokens: int = 128, temperature: float | None = None) -> str:
        """Answer a prompt with the smaller model, which the first call loads. Raises as `Model.generate` and `load`."""
        return self._loaded.generate(prompt, max_tokens=max_tokens, temperature=temperature)

    @cached_property
    def _loaded(self) -> Model:
        return self.load()


SIZED_BY = ("model", "budget", "vocabulary")
"""Settings that make another model of a run, rather than continue it."""


@in_usual_state
@spelled_out(option_types())
def prune(
    model: str | Path | None = None,
    out: str | Path = "runs/pruned",
    *,
    recipe: Recipe | str | Path | None = None,
    assignments: Iterable[str] = (),
    overwrite: bool = False,
    until: str = REPORT,
    track: str | None = None,
    reporter: Reporter | None = None,
    begun: float | None = None,
    measures: MeasureRequest | None = None,
    within: str | None = None,
    **given: Unpack[RecipeOptions],
) -> Result:
    """Prune a model: the whole pipeline; `darwinlm prune` calls this.

    For several sizes from one database see `darwinlm.prune_sweep`.

    Args:
        model: Hub id, folder or GGUF file; overrides the recipe's.
        out: Output folder; an earlier run of the same kind is resumed.
        recipe: Recipe, path of a recipe, or name of a bundled one; None starts from the defaults.
        assignments: "section.field=value" strings, applied to the recipe.
        overwrite: Whether a finished run of another model or size in `out` may be replaced.
        until: Last stage.
        track: Tracker that receives figures while the run works: "wandb", "trackio", "tensorboard" or "mlflow".
        reporter: Receiver of progress; None prints to the terminal.
        begun: Start of the time limit, `working_time()`; None is now.
        measures: Measures of one's own, on which the saved model is compared with the dense one.
        within: Bound in quality in place of a budget: "2%" of the dense model's score on every measure, or
            "0.02 nats" of KL. The smallest size that keeps it is found.
        given: Settings by their short names, which replace the recipe's: `vocab`, `time`, `preset`, `ready_for`,
            `layers`, `text` and `answers`, described in `darwinlm.recipe.RecipeOptions`; and one budget of keep=0.5,
            params="350M", bytes="4GB", file="95MB", speedup="2x" and latency="30ms", described in
            `steps/budget/kinds.py`. Without a budget, the recipe's is used.

    Raises:
        DarwinLMError: The input is wrong; see `darwinlm.runtime.errors`.
    """
    opened = [] if measures is None else measures.open()
    sized = [name for name in BUDGETS if given.get(name) is not None]
    if within is not None and (sized or until != REPORT):
        other = f"--{sized[0]}" if sized else "--until"
        raise RecipeError(f"--within finds the size itself, and runs to its report: leave {other} out")
    resolved = load_recipe(recipe, assignments, options(model=model, **given))
    check_tracker(track)
    if within is not None:
        from darwinlm.runs.within import prune_within

        if track is not None:
            raise RecipeError("--within runs several searches, which no tracker can tell apart: leave --track out")
        bound, folder = parse_within(within), output_folder(out)
        check_inputs(folder, resolved)
        prune_within(resolved, folder, bound, opened, reporter or Reporter(), overwrite=overwrite)
        return Result(folder)
    run = open_size(
        resolved,
        output_folder(out),
        reporter or Reporter(),
        overwrite=overwrite,
        until=until,
        begun=begun or working_time(),
    )
    with tracked(run, track):
        summary = _prune_measured(run, opened) if opened else pipeline.prune(run)
        if summary is not None:
            tell_models(run, summary)
    return Result(run.folder)


def _prune_measured(run: Run[Recipe], measures: Sequence[Measure]) -> Summary | None:
    """Prune a model to one size, and compare it with the dense one on measures; as `pipeline.prune`."""
    try:
        inputs = pipeline.read_inputs(run)
        OwnScores(run, inputs, measures).check()
        chosen = None if run.recipe.vocabulary.auto else pipeline.plan(run, inputs)
        inputs, problem, database = pipeline.fit(run, inputs, chosen, pipeline.build(run, inputs))
        score = partial(OwnScores(run, inputs, measures).curve, problem, database)
        return pipeline.make(run, inputs, problem, database, score=score)
    except Ended:
        return None


def open_size(
    recipe: Recipe,
    folder: Path,
    reporter: Reporter,
    *,
    until: str,
    overwrite: bool = False,
    parent: Run[Recipe] | None = None,
    begun: float | None = None,
) -> Run[Recipe]:
    """A run of one size, opened as by `open_run`.

    Raises RecipeError if there is no stage `until`, ArtifactError if the run would write over its inputs, or replace
    another model without `overwrite`, and as `Run`.
    """
    if until not in ORDER:
        raise RecipeError(f"--until {until}: there is no such stage; the stages are {', '.join(ORDER)}")
    check_inputs(folder, recipe)
    if not overwrite:
        check_replaced(recipe, folder, "replace it with --overwrite")
    return open_run(recipe, folder, reporter, parent=parent, until=until, begun=begun)


def check_replaced(recipe: Recipe, folder: Path, advice: str, *, sized_by: Iterable[str] = SIZED_BY) -> None:
    """Refuse to replace a finished run, of any version, by one of another model or size.

    `advice` ends the message: what to do instead of choosing another folder. `sized_by` are the settings that count.

    Raises ArtifactError, or CheckpointError if a model is named otherwise and damaged.
    """
    if not (folder / FILE).is_file():
        return
    finished = validated(folder / FILE, JsonObject, read_record(folder / FILE).get("recipe"))
    settings = named_here(recipe).model_dump(mode="json")
    changed = [name for name in sized_by if name in finished and not same_value(finished[name], settings[name])]
    if "model" in changed and same_model(finished["model"], settings["model"], folder):
        changed.remove("model")
    if changed:
        raise ArtifactError(
            f"{folder} holds a finished run with another {' and '.join(changed)}: choose another folder with --out, "
            f"or {advice}"
        )
