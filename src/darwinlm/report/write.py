"""Report: summary.json, report.html and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import transformers

from darwinlm.formats.gguf.gguf_format import GGUF
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.origin import Origin, origin_of
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.layer_sizes import BlockSizes, block_sizes
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.surgery.depth import numbers_in
from darwinlm.model.units.space import kept_whole
from darwinlm.report.card import model_card
from darwinlm.report.curve_figures import CurveFigures
from darwinlm.report.page import render_page
from darwinlm.report.summary import FILE, BlockFigures, BudgetFigures, FileFigures, MachineFigures, Summary
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import read_record, validated, write_json, write_text
from darwinlm.runtime.errors import BudgetError
from darwinlm.runtime.figures import StepFigures, TimeFigures
from darwinlm.runtime.run import Run
from darwinlm.runtime.sections import AnyRecipe
from darwinlm.runtime.version import VERSION
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.evaluate.model_figures import Measured
from darwinlm.steps.evaluate.speed import prompts_for
from darwinlm.steps.export.step import Exported
from darwinlm.steps.own_text.script import is_chat
from darwinlm.steps.results import Inputs
from darwinlm.steps.search.step import SearchResult

PAGE = "report.html"


def write_summary(
    run: Run[AnyRecipe],
    inputs: Inputs,
    problem: Problem,
    search: SearchResult,
    exported: Exported,
    measured: Measured,
    curve: CurveFigures | None = None,
) -> Summary:
    """Write the summary, the page and the card of a run that prunes, on every run; `curve` are the user's own scores.

    Raises BudgetError.
    """
    dense = inputs.dense
    summary = summary_of(
        run,
        dense,
        exported,
        measured,
        budget=_budget(run.recipe.section(BudgetSettings), problem, search, measured),
        origin=origin_of(dense.folder, dense.source),
        kept=kept_whole(problem.space, dense.family),
        curve=curve,
    )
    write_report(run.folder, exported.folder, summary)
    return summary


def write_report(folder: Path, model: Path, summary: Summary) -> None:
    """Write summary.json and report.html into an output folder, and the card into the folder of the weights.

    Among several processes the first one writes, and the others wait. Raises StorageError if the disk is full.
    """

    def write() -> None:
        write_json(folder / FILE, summary.as_json())
        write_text(folder / PAGE, render_page(summary))
        write_text(model / "README.md", model_card(summary))

    parallel.in_main(write)


def summary_of(
    run: Run[AnyRecipe],
    dense: Checkpoint,
    exported: Exported,
    measured: Measured,
    *,
    origin: Origin,
    budget: BudgetFigures | None = None,
    kept: str = "",
    earlier: Mapping[str, StepFigures] | None = None,
    curve: CurveFigures | None = None,
) -> Summary:
    """The summary of a run or of a recovery alone; `earlier` is what steps of the run that pruned the model told."""
    context, tokenizer = run.context, exported.checkpoint.tokenizer()
    return Summary(
        version=VERSION,
        model=dense.source,
        budget=budget,
        models=measured,
        origin=origin,
        prompts=() if objective_of(dense).reads else prompts_for(tokenizer),
        chat=is_chat(tokenizer),
        allocation=allocation_figures(dense, Checkpoint.describe(exported.folder)),
        kept=kept,
        left_out=dense.left_out,
        curve=curve,
        steps={**(earlier or {}), **run.figures},
        text_use=run.text_use,
        stages=run.times,
        time=_time(run),
        file=_file(dense, exported.checkpoint),
        machine=MachineFigures(
            device=str(context.device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            transformers=transformers.__version__,
            compute_dtype=str(context.dtype).removeprefix("torch."),
        ),
        recipe=run.recipe.model_dump(mode="json"),
    )


def _time(run: Run[AnyRecipe]) -> TimeFigures | None:
    """The time limit and its use; a rerun that only reused stages keeps what the run said."""
    earlier_summary = run.folder / FILE
    if all(stage.reused for stage in run.times) and earlier_summary.is_file():
        time = read_record(earlier_summary).get("time")
        return None if time is None else validated(earlier_summary, TimeFigures, time)
    limit = run.context.limit
    if limit is None:
        return None
    return TimeFigures(limit=limit.seconds, seconds=round(limit.used, 1), preset=limit.preset)


def _file(dense: Checkpoint, small: Checkpoint) -> FileFigures | None:
    """Predicted sizes of GGUF files; None if llama.cpp can't run the model or doesn't know its tokenizer."""
    source = Path(dense.source)
    of_dense, of_small = (GGUF.predict(checkpoint) for checkpoint in (dense, small))
    if not of_small or not of_dense:
        return None
    source_bytes = source.stat().st_size if GGUF.holds(source) else None
    return FileFigures(dense=of_dense, predicted=of_small, bytes=source_bytes)


def _budget(settings: BudgetSettings, problem: Problem, search: SearchResult, models: Measured) -> BudgetFigures:
    """The budget and its use by the saved model. Raises BudgetError if it differs from the plan."""
    allocation = search.allocation
    dense, *_, final = models.values()
    planned = problem.space.params(allocation)
    used = problem.cost.of(allocation)
    if (final.block_params, final.params) != (planned, planned + problem.outside) or used > problem.budget.limit:
        raise BudgetError(
            f"the saved model has {final.block_params:,} block parameters and {final.params:,} in all, but "
            f"{planned:,} and {planned + problem.outside:,} were planned for a budget of "
            f"{problem.cost.words(problem.budget.limit)}: please report this"
        )
    return BudgetFigures(
        kind=settings.kind,
        keep=settings.keep,
        unit=problem.cost.unit,
        dense=problem.cost.original,
        upper=problem.budget.limit,
        used=used,
        unused=1 - used / problem.budget.limit,
        dense_block_params=dense.block_params,
        block_params=final.block_params,
    )


def allocation_figures(dense: Checkpoint, small: Checkpoint) -> tuple[BlockFigures, ...]:
    """The remaining part of each block of the original model, from the shapes of both models' tensors."""
    remaining = dict(zip(numbers_in(small, dense), _sizes_of(small), strict=True))
    return tuple(
        BlockFigures.of(sizes, remaining.get(sizes.block, BlockSizes(sizes.block))) for sizes in _sizes_of(dense)
    )


def _sizes_of(checkpoint: Checkpoint) -> list[BlockSizes]:
    return block_sizes(checkpoint.n_blocks, {shape.place: shape.sizes for shape in module_shapes(checkpoint)})
