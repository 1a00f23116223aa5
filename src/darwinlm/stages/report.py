"""Report: summary.json, report.html and the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from darwinlm import __version__
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.origin import origin_of
from darwinlm.families.shapes import module_shapes
from darwinlm.families.whole import is_whole
from darwinlm.gguf.sizes import predicted_sizes
from darwinlm.report.card import model_card
from darwinlm.report.page import render_page
from darwinlm.report.summary import (
    FILE,
    BlockFigures,
    BudgetFigures,
    ExportFigures,
    FileFigures,
    MachineFigures,
    PurposeFigures,
    RecoveryFigures,
    RefitFigures,
    SearchFigures,
    Summary,
    TextFigures,
)
from darwinlm.run import Run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import write_json, write_text
from darwinlm.runtime.errors import BudgetError
from darwinlm.runtime.figures import ModelFigures
from darwinlm.search.predict.module_losses import sensitivities
from darwinlm.search.problem.space import kept_whole
from darwinlm.stages.export import Exported
from darwinlm.stages.text import Texts
from darwinlm.surgery.depth import numbers_in

if TYPE_CHECKING:
    from darwinlm.stages.evaluate import Measured
    from darwinlm.stages.results import StageResults

PAGE = "report.html"


def report_stage(run: Run, results: StageResults) -> Summary:
    """Write the summary, the page and the card, on every run.

    Raises:
        BudgetError: The saved model exceeds the budget.
        StorageError: The disk is full.
    """
    models, refitted, recovered = results.evaluate, results.refit, results.recover
    summary = summary_of(
        run,
        results.text,
        results.export,
        models,
        from_pruned=run.teacher is not run.checkpoint,
        budget=_budget(run, results, models["dense"], list(models.values())[-1]),
        origin=origin_of(run.teacher.folder, run.teacher.source),
        kept=kept_whole(results.plan.space, run.checkpoint.family),
        sensitivity=tuple(sensitivities(results.plan.space, results.database.reader)),
        search=SearchFigures.model_validate({"method": run.recipe.search.method, **results.search.record}),
        refit=RefitFigures.model_validate({"choices": refitted.choices, **refitted.record}) if refitted else None,
        recovery=RecoveryFigures.model_validate(recovered.record) if recovered else None,
        vocabulary=results.vocabulary,
        time=run.time,
    )
    write_report(run.folder, results.export.folder, summary)
    return summary


def write_report(folder: Path, model: Path, summary: Summary) -> None:
    """Write summary.json and report.html into an output folder, and the card beside the weights.

    Among several processes only the first one writes. Raises StorageError if the disk is full.
    """
    if parallel.is_main():
        write_json(folder / FILE, summary.as_json())
        write_text(folder / PAGE, render_page(summary))
        write_text(model / "README.md", model_card(summary))


def summary_of(run: Run, texts: Texts, exported: Exported, models: Measured, **made: Any) -> Summary:
    """Summary of a run or of a recovery alone; `made` holds the fields in which they differ."""
    recipe = run.recipe
    return Summary(
        version=__version__,
        model=run.teacher.source,
        models=models,
        prompts=recipe.evaluation.prompts,
        allocation=allocation_figures(run.teacher, Checkpoint.describe(exported.folder)),
        file=_file(Path(run.teacher.source), exported.folder),
        text=TextFigures(
            source=recipe.text.source,
            sequence_length=recipe.text.sequence_length,
            purposes={
                purpose: PurposeFigures(tokens=part.n_tokens, documents=len(part.document_hashes))
                for purpose, part in texts.items()
            },
            training_source=(recipe.recovery.text or recipe.text.source) if recipe.recovery.tokens else None,
        ),
        stages=tuple(run.timings),
        export=ExportFigures(
            folder=exported.folder.name,
            custom_code=exported.custom_code,
            dtype=str(exported.dtype).removeprefix("torch."),
            whole=is_whole(exported.folder),
        ),
        machine=MachineFigures(
            device=str(run.device),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            transformers=transformers.__version__,
            compute_dtype=str(run.dtype).removeprefix("torch."),
        ),
        recipe=recipe.model_dump(mode="json"),
        **made,
    )


def _file(source: Path, small: Path) -> FileFigures | None:
    if source.suffix != ".gguf" or not source.is_file():
        return None
    return FileFigures(bytes=source.stat().st_size, predicted=predicted_sizes(Checkpoint.open(small), source))


def _budget(run: Run, results: StageResults, dense: ModelFigures, final: ModelFigures) -> BudgetFigures:
    """The budget and its use by the saved model. Raises BudgetError if it differs from the plan."""
    settings, plan, allocation = run.recipe.budget, results.plan, results.search.allocation
    planned = plan.space.params(allocation)
    used = plan.cost.of(allocation)
    if (final.block_params, final.params) != (planned, planned + plan.outside) or used > plan.budget.limit:
        raise BudgetError(
            f"the saved model has {final.block_params:,} block parameters and {final.params:,} in all, but "
            f"{planned:,} and {planned + plan.outside:,} were planned for a budget of "
            f"{plan.cost.words(plan.budget.limit)}: please report this"
        )
    return BudgetFigures(
        kind=settings.kind,
        bound=getattr(settings, settings.kind),
        # In a later round, the share of the original model.
        keep=settings.keep if run.teacher is run.checkpoint else planned / dense.block_params,
        unit=plan.cost.unit,
        dense=plan.cost.dense,
        upper=plan.budget.limit,
        used=used,
        unused=1 - used / plan.budget.limit,
        dense_block_params=dense.block_params,
        block_params=final.block_params,
    )


def allocation_figures(dense: Checkpoint, small: Checkpoint) -> tuple[BlockFigures, ...]:
    """The remaining part of each block of the original model, from the shapes of both models' tensors."""
    blocks: list[dict[str, int]] = [{"block": block} for block in range(dense.n_blocks)]
    for checkpoint, prefix in ((dense, "dense_"), (small, "")):
        numbers = numbers_in(checkpoint, dense)
        for shape in module_shapes(checkpoint):
            row = blocks[numbers[shape.block]]
            if shape.kind == "attention":
                row |= {f"{prefix}groups": shape.groups, f"{prefix}heads": shape.width // shape.head_dim}
            elif shape.kind == "mlp":
                row |= {f"{prefix}width": shape.width, f"{prefix}experts": shape.experts}
    return tuple(BlockFigures.model_validate(row) for row in blocks)
