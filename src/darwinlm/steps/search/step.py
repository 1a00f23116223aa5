"""Search: the stage that finds the allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.space import Allocation
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.step import PruningDatabase
from darwinlm.steps.search.search import search
from darwinlm.steps.text.sequences import TokenSequences

RESULT = "result.json"


@dataclass(frozen=True)
class SearchResult:
    """Best allocation, best uniform one at the same budget, and the record: start, history and figures."""

    allocation: Allocation
    uniform: Allocation
    record: dict[str, Any]


def _search(
    task: Task,
    dense: Checkpoint,
    database: PruningDatabase,
    plan: Problem,
    fitness: TokenSequences,
    training: TokenSequences | None,
) -> None:
    """Find the allocation."""
    context = task.context
    texts = {"fitness": fitness.tokens} | ({} if training is None else {"training": training.tokens})
    model: Decoder
    if task.recipe.search.training_needed:  # candidates in training are whole models
        model = Decoder(dense.load(context.dtype, context.device), dense.family)
    else:
        model = StreamedDecoder(dense, fitness.tokens, dtype=context.dtype, device=context.device)
    result = search(
        model,
        database.reader,
        plan,
        texts,
        task.recipe.search,
        task.folder,
        context.reporter,
        batch_tokens=context.batch_tokens,
        seconds=task.left(SEARCH.name),
    )
    parallel.in_main(write_json, task.folder / RESULT, result)


def _read(task: Task) -> SearchResult:
    return read_as(task.folder / RESULT, SearchResult)


SEARCH = Stage(
    "search",
    _search,
    _read,
    version=16,
    writes="the allocation, and the history of the search",
    settings=("search", "time", "units", "budget"),
    arithmetic=True,
    together=True,
)
"""One level for every module."""
