"""Finalists of one size, refitted and scored, and what choosing by the measure gains over choosing by the KL."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from darwinlm import pipeline
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.units.space import Allocation
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.recipe import Recipe
from darwinlm.runs.opening import open_run
from darwinlm.runtime.artifact import digest_of, read_as, read_json, write_json
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.run import Run
from darwinlm.runtime.tables import Table
from darwinlm.steps.database.step import PruningDatabase
from darwinlm.steps.refit.step import Refitted
from darwinlm.steps.results import Inputs
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.module_cache import PlacedModules
from darwinlm.steps.search.search import STATE
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.search.state import SearchState
from darwinlm.steps.search.step import Search
from darwinlm.steps.stitch.step import Stitch
from lab.judging.choice import choice, spread
from lab.judging.finalists import Finder, others_of, with_whole_attention, without_late_blocks
from lab.judging.packed_choices import read_items, scores

OTHERS = 2
"""Further candidates of the search itself."""


@dataclass(frozen=True)
class Finalist:
    """A finalist after its refit; KL in nats per token of fitness and of validation text."""

    name: str
    allocation: Allocation
    fitness_kl: float
    kl: float
    scores: dict[str, list[float]]


def judge_finalists(
    recipes: Sequence[Recipe], items: dict[str, int], data: Path, out: Path, reporter: Reporter
) -> Table:
    """Make and score the finalists of sizes that share a database; results are written as they come.

    Returns a row for each size and task. Raises DarwinLMError.
    """
    base = open_run(recipes[0], out, reporter)
    inputs = pipeline.read_inputs(base)
    database = pipeline.build(base, inputs)
    tokenizer = inputs.dense.tokenizer()
    tasks = {name: read_items(name, data, count) for name, count in items.items()}
    dense = out / "dense.json"
    if not dense.exists():
        model = inputs.dense.load(base.context.dtype, base.context.device)
        write_json(dense, {name: scores(model, tokenizer, task) for name, task in tasks.items()})
        del model
    rows = []
    for recipe in recipes:
        folder = out / f"keep-{100 * recipe.budget.bound.value:g}"
        run = open_run(recipe, folder, reporter, parent=base)
        chosen = _finalists(run, inputs, database)
        for name, (allocation, fitness_kl) in chosen.items():
            file = folder / "finalists" / f"{name}.json"
            if file.exists():
                continue
            begun = time.monotonic()
            own = open_run(recipe, folder / name.replace(" ", "-"), reporter, parent=base)
            search = replace(run.results[Search.name], allocation=allocation, digest=digest_of(list(allocation)))
            smaller = pipeline.refit(own, inputs, own(Stitch(database, search)))[1]
            assert isinstance(smaller, Refitted), "finalists are refitted"
            model = smaller.model(base.context.dtype)
            refitted = time.monotonic()
            found = {task: scores(model, tokenizer, of_task) for task, of_task in tasks.items()}
            del model
            kl = min(smaller.record["kl_by_strength"].values())
            file.parent.mkdir(exist_ok=True)
            write_json(file, asdict(Finalist(name, allocation, fitness_kl, kl, found)))
            means = ", ".join(f"{task} {100 * statistics.fmean(values):.1f}" for task, values in found.items())
            times = f"{refitted - begun:.0f} s, {time.monotonic() - refitted:.0f} s"
            reporter.say(f"{folder.name} {name}: KL {kl:.3f}, {means} ({times})")
        rows += _rows(folder.name, read_as(dense, dict[str, list[float]]), _read(folder))
    headings = ("size", "task", "items", "dense, %", "by KL, %", "by the measure - by KL", "spread", "by chance")
    return Table(headings, rows)


def _read(folder: Path) -> list[Finalist]:
    """The finished finalists of a size."""
    return [read_as(file, Finalist) for file in sorted((folder / "finalists").glob("*.json"))]


def _rows(size: str, dense: dict[str, list[float]], finalists: Sequence[Finalist]) -> list[tuple[str, ...]]:
    """A row for each task: the dense model, the choice by KL, and what choosing by the task gains."""
    rows = []
    for task, expected in dense.items():
        table = [finalist.scores[task] for finalist in finalists]
        found, (measured, by_chance) = choice(table, [finalist.kl for finalist in finalists]), spread(table)
        scores_of_both = (statistics.fmean(expected), statistics.fmean(table[found.by_kl]))
        winners = " / ".join(finalists[at].name for at in (*found.winners, found.by_kl))
        gain = f"{100 * found.gain:+.1f} ± {100 * found.stderr:.1f} ({winners})"
        cells = (*(f"{100 * value:.1f}" for value in scores_of_both), gain, f"{100 * measured:.1f}")
        rows.append((size, task, str(len(expected)), *cells, f"{100 * by_chance:.1f}"))
    return rows


def _finalists(run: Run[Recipe], inputs: Inputs, database: PruningDatabase) -> dict[str, tuple[Allocation, float]]:
    """Allocations by name, with their KL in nats per token of fitness text, before the refit."""
    file = run.folder / "allocations.json"
    problem = pipeline.plan(run, inputs)
    text = inputs.text["fitness"]
    search = run(Search(inputs.dense, database, problem, text, None))
    if file.exists():
        return {name: (tuple(allocation), kl) for name, (allocation, kl) in read_json(file).items()}
    context, settings = run.context, run.recipe.section(SearchSettings)
    model = StreamedDecoder(inputs.dense, text.tokens, dtype=context.dtype, device=context.device)
    placed = PlacedModules(model, database.reader, problem.space)
    n_tokens = settings.rounds[-1].tokens
    fitness = Fitness(
        placed,
        text.tokens[: -(-settings.fitness_needed // text.tokens.shape[1])],
        objective_of(inputs.dense),
        batch_tokens=context.batch_tokens,
        memory=HiddenMemory(context.folder),
    )
    losses = database.reader.estimated_losses(problem.space)
    assert losses is not None, "the database has estimates"
    find = Finder(fitness, database.reader, settings, losses, context.reporter.say)
    state = SearchState.load(context.path(Search.name) / STATE, problem.cost.costs)
    chosen = {"search": search.allocation, "equal layers": search.uniform}
    found = others_of(state, problem, lambda pool: fitness.kls(pool, n_tokens), OTHERS)
    chosen |= {f"other {number}": allocation for number, allocation in enumerate(found, 1)}
    chosen["late blocks gone"] = find.best(without_late_blocks(problem), run.folder / "late.json")
    chosen["attention whole"] = find.best(with_whole_attention(problem), run.folder / "attention.json")
    kls = fitness.kls([*chosen.values()], n_tokens)
    named = {name: (allocation, kl) for (name, allocation), kl in zip(chosen.items(), kls, strict=True)}
    write_json(file, {name: [list(allocation), kl] for name, (allocation, kl) in named.items()})
    return named
