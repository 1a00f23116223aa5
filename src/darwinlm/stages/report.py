"""Report: summary.json, report.html and the model card."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from darwinlm import __version__, parallel
from darwinlm.artifact import write_json, write_text
from darwinlm.errors import BudgetError
from darwinlm.report.card import model_card
from darwinlm.report.page import render_page
from darwinlm.run import Run
from darwinlm.search.problem.problem import Problem
from darwinlm.stages.export import Exported
from darwinlm.stages.search import SearchResult
from darwinlm.stages.text import Texts


def report_stage(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """Write everything that was found, for machines and for people; always done afresh.

    Raises:
        BudgetError: the saved model doesn't keep the budget.
        StorageError: the disk is full.
    """
    summary = summarise(run, found)
    if not parallel.is_main():
        return summary
    write_json(run.folder / "summary.json", summary)
    write_text(run.folder / "report.html", render_page(summary))
    write_text(found["export"].folder / "README.md", model_card(summary))
    return summary


def summarise(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """All facts of a run as JSON-like values. Raises BudgetError when the saved model is too large."""
    plan: Problem = found["plan"]
    search: SearchResult = found["search"]
    exported: Exported = found["export"]
    models: dict[str, Any] = found["evaluate"]
    final = models.get("recovered", models.get("refit", models["stitched"]))
    budget = _budget(run, plan, search, models["dense"], final)
    return {
        "version": __version__,
        "model": run.teacher.source,
        "budget": budget,
        "models": models,
        "prompts": list(run.recipe.evaluation.prompts),
        "allocation": _allocation(run, found, search),
        "search": search.record,
        "refit": {"choices": found["refit"].choices, **found["refit"].record} if found["refit"] else None,
        "recovery": found["recover"].record if found["recover"] else None,
        "text": _text(found["text"], run),
        "stages": run.timings,
        "export": {
            "folder": exported.folder.name,
            "custom_code": exported.custom_code,
            "dtype": str(exported.dtype).removeprefix("torch."),
        },
        "machine": {
            "device": str(run.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "compute_dtype": str(run.dtype).removeprefix("torch."),
        },
        "recipe": run.recipe.model_dump(mode="json"),
    }


def _budget(
    run: Run, plan: Problem, search: SearchResult, dense: dict[str, Any], final: dict[str, Any]
) -> dict[str, Any]:
    """The budget, and what the saved model uses of it. Raises BudgetError when that isn't what was planned."""
    settings = run.recipe.budget
    planned = plan.space.params(search.allocation)
    used = plan.cost.of(search.allocation)
    if (final["block_params"], final["params"]) != (planned, planned + plan.outside) or used > plan.budget.limit:
        raise BudgetError(
            f"the saved model has {final['block_params']:,} block parameters and {final['params']:,} in all, but "
            f"{planned:,} and {planned + plan.outside:,} were planned for a budget of "
            f"{plan.cost.words(plan.budget.limit)}: please report this"
        )
    return {
        "kind": settings.kind,
        "bound": getattr(settings, settings.kind),
        # Of a later round, the share of the original.
        "keep": settings.keep if run.teacher is run.checkpoint else planned / dense["block_params"],
        "unit": plan.cost.unit,
        "dense": plan.cost.dense,
        "upper": plan.budget.limit,
        "used": used,
        "unused": 1 - used / plan.budget.limit,
        "dense_block_params": dense["block_params"],
        "block_params": final["block_params"],
    }


def _allocation(run: Run, found: dict[str, Any], search: SearchResult) -> list[dict[str, int]]:
    rows = [
        dict.fromkeys(("block", "groups", "heads", "width", "dense_groups", "dense_heads", "dense_width"), 0)
        for _ in range(run.checkpoint.n_blocks)
    ]
    plan: Problem = found["plan"]
    for module, level in zip(plan.space.modules, plan.space.levels(search.allocation), strict=True):
        row, dense = rows[module.block], module.levels[-1]
        if module.kind == "attention":
            row |= {"groups": level.groups, "heads": level.query_heads}
            row |= {"dense_groups": dense.groups, "dense_heads": dense.query_heads}
        else:
            row |= {"width": level.width, "dense_width": dense.width}
    for block, row in enumerate(rows):
        row["block"] = block
    return rows


def _text(texts: Texts, run: Run) -> dict[str, Any]:
    purposes = {
        purpose: {"tokens": part.n_tokens, "documents": len(part.document_hashes)} for purpose, part in texts.items()
    }
    return {
        "source": run.recipe.text.source,
        "sequence_length": run.recipe.text.sequence_length,
        "purposes": purposes,
    }
