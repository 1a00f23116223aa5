"""Search: the stage that finds the allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darwinlm.run import Run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, read_json, write_json
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation
from darwinlm.search.search import search
from darwinlm.stages.database import PruningDatabase
from darwinlm.stages.text import Texts
from darwinlm.streaming.decoder import Decoder
from darwinlm.streaming.streamed import StreamedDecoder

RESULT = "result.json"


@dataclass(frozen=True)
class SearchResult:
    """Best allocation, best uniform one at the same budget, and the record: start, history and figures."""

    stage: StageFolder
    allocation: Allocation
    uniform: Allocation
    record: dict[str, Any]


def search_stage(
    run: Run, texts: Texts, database: PruningDatabase, problem: Problem, *, neighbour: Allocation | None = None
) -> SearchResult:
    """Find the allocation, or reuse it.

    The search starts from `neighbour`, a result at another budget with the same database, if it is better.

    Raises:
        BudgetError: No allocation keeps the budget.
        NumericsError: Losses aren't finite.
    """
    recipe = run.recipe
    key = {
        "database": database.stage.digest,
        "fitness": texts["fitness"].digest,
        "arithmetic": run.arithmetic,
        "search": recipe.search.model_dump(),
        "budget": recipe.budget.model_dump(),
        "costs": [problem.cost.unit, problem.cost.fixed, problem.cost.costs],
        "neighbour": neighbour,
        "equal": None if problem.equal is None else [problem.equal.sizes, problem.equal.blocks],
        "training": texts["training"].digest if "training" in texts else None,
    }
    with run.stage("search", key, "search", shared=True) as (stage, work):
        if work:
            tokens = {purpose: text.tokens for purpose, text in texts.items()}
            model: Decoder
            if recipe.search.training_needed:  # candidates in training are whole models
                model = Decoder(run.checkpoint.load(run.dtype, run.device), run.checkpoint.family)
            else:
                model = StreamedDecoder(run.checkpoint, tokens["fitness"], dtype=run.dtype, device=run.device)
            result = search(
                model,
                database.reader,
                problem,
                tokens,
                recipe.search,
                stage.folder,
                run.reporter,
                batch_tokens=run.batch_tokens,
                neighbour=neighbour,
            )
            parallel.in_main(write_json, stage.folder / RESULT, result)
        result = read_json(stage.folder / RESULT)
    return SearchResult(stage, tuple(result["allocation"]), tuple(result["uniform"]), result["record"])
