"""Search: single-module scores, the first parent, evolution, finalists; and the best uniform allocation beside it."""

from __future__ import annotations

import math
import random
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from darwinlm import parallel
from darwinlm.artifact import StageFolder, read_json, write_json
from darwinlm.errors import BudgetError, RecipeError
from darwinlm.families.decoder import Decoder
from darwinlm.run import Run
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.evaluate.training import CandidateTrainer
from darwinlm.search.evolve.descent import Descent, Slope, descend
from darwinlm.search.evolve.evolution import LossModel, evolve
from darwinlm.search.evolve.finalists import choose
from darwinlm.search.evolve.state import EvolutionState, FirstParent
from darwinlm.search.predict.curvature import Curvature, removed_together
from darwinlm.search.predict.gradient_agreement import GradientAgreement
from darwinlm.search.predict.gradients import Gradients
from darwinlm.search.predict.module_losses import (
    estimated_losses,
    level_losses,
    levels_around,
    local_errors,
    measure,
)
from darwinlm.search.problem.space import Allocation, Curves
from darwinlm.search.propose.level_switch import filled
from darwinlm.search.propose.start import knapsack_start, neighbour_start, random_start, uniform_allocations
from darwinlm.stages.database import PruningDatabase
from darwinlm.stages.plan import Problem
from darwinlm.stages.scores import Scores, read_scores, scores_stage
from darwinlm.stages.text import Texts

RESULT = "result.json"
STATE = "evolution.json"
DESCENT = "descent.json"
FINALISTS = "finalists.json"
SCORES = "scores.json"
PROXY_TOKENS = 2048
"""Training text on which gradients are compared."""


@dataclass(frozen=True)
class SearchResult:
    """What the search settled on.

    Attributes:
        stage: holds it.
        allocation: the answer.
        uniform: the best allocation with equal layers at the same budget.
        record: start, history and figures for the report.
    """

    stage: StageFolder
    allocation: Allocation
    uniform: Allocation
    record: dict[str, Any]


class _Searcher:
    """What a search works with; the model is loaded when something is evaluated for the first time."""

    def __init__(
        self, run: Run, texts: Texts, database: PruningDatabase, plan: Problem, neighbour: Allocation | None
    ) -> None:
        self.run = run
        self.settings = run.recipe.search
        self.texts = texts
        self.database = database
        self.plan = plan
        self.neighbour = neighbour

    @cached_property
    def placed(self) -> PlacedModules:
        model = self.run.checkpoint.load(self.run.dtype, self.run.device)
        return PlacedModules(Decoder(model, self.run.checkpoint.family), self.database.reader, self.plan.space)

    @cached_property
    def fitness(self) -> Fitness:
        tokens = self.texts["fitness"].tokens
        rows = -(-self.settings.fitness_needed // tokens.shape[1])
        return Fitness(self.placed, tokens[:rows], batch_tokens=self.run.batch_tokens)

    @cached_property
    def gradients(self) -> Gradients:
        return Gradients(self.placed, self.fitness.tokens, batch_tokens=self.run.batch_tokens)

    def slopes(self, allocation: Allocation) -> Curves:
        # The end of the text: the first stages, which slopes choose candidates for, read its beginning.
        end = self.fitness.n_sequences
        return self.gradients.around(allocation, (end - self.fitness.sequences(self.settings.slope_tokens), end))

    @cached_property
    def errors(self) -> Curves:
        return local_errors(self.plan.space, self.database.reader)

    @cached_property
    def estimates(self) -> Curves | None:
        return estimated_losses(self.plan.space, self.database.reader)

    @property
    def shapes(self) -> Curves:
        """What the losses of a module's levels follow."""
        return self.estimates or self.errors

    @property
    def start(self) -> str:
        """Where the search starts."""
        return self.settings.first_parent(estimated=self.estimates is not None)

    @property
    def score_levels(self) -> int:
        """Levels of each module whose loss is measured. Raises RecipeError."""
        found = self.settings.levels_measured(estimated=self.estimates is not None)
        if not found and self.estimates is None:
            raise RecipeError(
                f"search.score_levels=0 takes the database's estimated losses, but {self.database.stage.folder} was "
                "made without output gradients: make it with database.saliency=loss, or give 1 level or more"
            )
        return found

    @cached_property
    def trainer(self) -> CandidateTrainer | None:
        if not self.settings.training_needed:
            return None
        return CandidateTrainer(self.placed, self.fitness, self.texts["training"].tokens, self.settings.training)

    def uniform(self) -> Allocation:
        """The best allocation with equal layers."""
        choices = uniform_allocations(self.plan.space, self.plan.cost, self.plan.budget)
        losses = self.fitness.kls(choices, self.settings.score_tokens)
        return min(zip(losses, choices, strict=True))[1]


def search_stage(
    run: Run, texts: Texts, database: PruningDatabase, plan: Problem, *, neighbour: Allocation | None = None
) -> SearchResult:
    """Find the allocation.

    Args:
        run: the run.
        texts: fitness text, and training text where candidates are trained.
        database: pruned modules.
        plan: space, costs and budget.
        neighbour: the answer at another budget on the same database, to start from where that is better.

    Raises:
        BudgetError: no allocation keeps the budget.
        NumericsError: losses aren't finite.
    """
    recipe = run.recipe
    shared = {
        "database": database.stage.digest,
        "fitness": texts["fitness"].digest,
        "arithmetic": run.arithmetic,
    }
    key = {
        **shared,
        "search": recipe.search.model_dump(),
        "budget": recipe.budget.model_dump(),
        "costs": [plan.cost.unit, plan.cost.fixed, plan.cost.costs],
        "neighbour": neighbour,
        "training": texts["training"].digest if "training" in texts else None,
    }
    searcher = _Searcher(run, texts, database, plan, neighbour)
    scores: Scores | None = None
    begun = time.monotonic()
    if not run.is_done("search", key) and searcher.start == "knapsack" and searcher.score_levels:
        scores = scores_stage(
            run, shared, plan, searcher.errors, searcher.estimates, searcher.fitness, searcher.score_levels
        )
    with run.stage("search", key, "search", shared=True) as (stage, work):
        if work:
            _search(searcher, scores, stage, begun)
            parallel.barrier()
        result = read_json(stage.folder / RESULT)
    return SearchResult(stage, tuple(result["allocation"]), tuple(result["uniform"]), result["record"])


def _search(searcher: _Searcher, scores: Scores | None, stage: StageFolder, begun: float) -> None:
    run, settings, plan, fitness = searcher.run, searcher.settings, searcher.plan, searcher.fitness
    # Losses must not depend on what was measured before an interruption: they start from no base.
    fitness.set_base(None)
    fitness.evaluations = len(scores.measured) if scores else 0
    uniform = searcher.uniform()
    uniform_kl = fitness.kl(uniform, settings.stages[-1].tokens)
    curves = _curves(searcher, scores, stage)
    problem = LossModel(plan.cost, plan.budget, [module.kind for module in plan.space.modules])
    if settings.screen:
        problem = replace(problem, curves=curves)
    if settings.uses_slopes:
        curvature = Curvature(curves, searcher.shapes, removed_together(plan.space, searcher.database.reader))
        problem = replace(problem, slopes=searcher.slopes, curvature=curvature)
    way_down = _WayDown(searcher, problem, stage.folder / DESCENT, begun)
    state = evolve(
        fitness,
        problem,
        settings,
        lambda: way_down.first(_start(searcher, curves, uniform)),
        stage.folder / STATE,
        trainer=searcher.trainer,
        used=time.monotonic() - begun,
        report=lambda state: _tell_generation(run, state),
    )
    allocation, finalists = state.parent, None
    if settings.finalists:
        rounds = searcher.trainer if settings.finalist_rounds else None
        allocation, finalists = choose(state.best, settings, rounds, _proxy(searcher), stage.folder / FINALISTS)
    result = _result(state, allocation, uniform, uniform_kl, searcher, finalists)
    result["record"] |= way_down.record()
    if parallel.is_main():
        write_json(stage.folder / RESULT, result)


class _WayDown:
    """The descent before the evolution, where the recipe has one.

    Args:
        searcher: what the search works with.
        problem: with slopes and curvature, where there are any.
        state_file: of the descent.
        begun: when the search did, on the monotonic clock.
    """

    def __init__(self, searcher: _Searcher, problem: LossModel, state_file: Path, begun: float) -> None:
        self.searcher = searcher
        self.problem = problem
        self.state_file = state_file
        self.begun = begun

    def first(self, start: Allocation) -> FirstParent:
        """Go down from the start."""
        searcher, settings = self.searcher, self.searcher.settings
        if not settings.descends:
            return FirstParent(start)
        assert self.problem.curves is not None
        assert self.problem.curvature is not None
        slope = Slope(
            self.problem.cost,
            self.problem.budget,
            self.problem.curves,
            self.problem.curvature,
            searcher.gradients.around,
        )
        found = descend(
            searcher.fitness,
            slope,
            start,
            self.state_file,
            n_steps=settings.descent_steps,
            tokens=settings.descent_tokens,
            left=self._left,
            report=lambda state: _tell_step(searcher, state, self._left()),
        )
        return FirstParent(found.parent, [start, *found.tried], found.observations, found.runners_up())

    def record(self) -> dict[str, Any]:
        """For the report: the steps, and the loss of the start in place of what they led to."""
        if not self.searcher.settings.descends:
            return {"descent": None}
        found = Descent.load(self.state_file, self.problem.cost.costs)
        return {"descent": [asdict(step) for step in found.steps], "start_kl": found.start_kl}

    def _left(self) -> float:
        settings, fitness = self.searcher.settings, self.searcher.fitness
        if settings.minutes is None:
            return math.inf
        others = max(settings.finalists - 1, 0) * settings.stages[-1].tokens * fitness.seconds_per_token
        return 60 * settings.minutes - (time.monotonic() - self.begun) - others


def _tell_step(searcher: _Searcher, state: Descent, left: float) -> None:
    """One line about the descent."""
    steps, kl = state.steps, None
    if steps and steps[0].kl is not None and steps[-1].kl is not None:
        kl = (steps[0].kl - steps[0].change, steps[-1].kl)
    evaluations = steps[-1].evaluations if steps else searcher.fitness.evaluations
    searcher.run.reporter.step(
        len(steps),
        searcher.settings.descent_steps,
        what="descent",
        kl=kl,
        count=(evaluations, "evaluations"),
        left=left if math.isfinite(left) else None,
    )


def _tell_generation(run: Run, state: EvolutionState) -> None:
    """One line about the evolution."""
    minutes = run.recipe.search.minutes
    run.reporter.step(
        state.done,
        run.recipe.search.generations,
        what="generation",
        kl=(state.history[0].kl, state.kl),
        count=(state.history[-1].evaluations, "evaluations"),
        left=None if minutes is None else 60 * minutes - state.seconds,
    )


def _curves(searcher: _Searcher, scores: Scores | None, stage: StageFolder) -> Curves:
    """Losses of every level: local errors, estimates, measured ones, those after a second look at their choice."""
    if scores is None:
        return searcher.errors if searcher.start == "ziplm" else searcher.shapes
    if not searcher.settings.score_adaptive:
        return scores.curves
    plan, fitness = searcher.plan, searcher.fitness
    known = {**scores.measured, **read_scores(stage, searcher.errors)}
    # Those of an interrupted second look were evaluated too.
    fitness.evaluations += len(known) - len(scores.measured)

    def save() -> None:
        if parallel.is_main():
            write_json(stage.folder / SCORES, known)

    wanted = levels_around(scores.curves, knapsack_start(plan.cost, plan.budget, scores.curves))
    measure(plan.space, wanted, fitness, n_tokens=searcher.settings.score_tokens, known=known, save=save)
    return level_losses(searcher.errors, searcher.estimates, known)


def _start(searcher: _Searcher, curves: Curves, uniform: Allocation) -> Allocation:
    settings, plan = searcher.settings, searcher.plan
    rng = random.Random(settings.seed)  # noqa: S311
    if searcher.start == "uniform":
        own = filled(uniform, plan.cost.costs, plan.budget, rng)
    elif searcher.start == "random":
        own = random_start(plan.space, plan.cost, plan.budget, rng)
    else:
        own = knapsack_start(plan.cost, plan.budget, curves)
    if searcher.neighbour is None:
        return own
    try:
        moved = neighbour_start(plan.cost, plan.budget, curves, searcher.neighbour)
    except BudgetError:
        return own
    searcher.fitness.set_base(None)
    losses = searcher.fitness.kls([own, moved], settings.stages[-1].tokens)
    return moved if losses[1] < losses[0] else own


def _proxy(searcher: _Searcher) -> GradientAgreement | None:
    if searcher.settings.proxy == "none":
        return None
    text = searcher.texts.get("training") or searcher.texts["fitness"]
    rows = max(1, PROXY_TOKENS // text.tokens.shape[1])
    return GradientAgreement(searcher.placed, text.tokens[:rows])


def _result(
    state: EvolutionState,
    allocation: Allocation,
    uniform: Allocation,
    uniform_kl: float,
    searcher: _Searcher,
    finalists: dict[str, Any] | None,
) -> dict[str, Any]:
    plan = searcher.plan
    record = {
        "start": searcher.start,
        "start_kl": state.history[0].kl,
        "uniform_kl": uniform_kl,
        "kl": next((loss for loss, each in state.best if each == allocation), state.kl),
        "cost": plan.cost.of(allocation),
        "evaluations": state.history[-1].evaluations,
        "seconds": state.seconds,
        "ended": state.ended,
        "history": [asdict(generation) for generation in state.history],
        "finalists": _without_infinities(finalists),
    }
    return {"allocation": allocation, "uniform": uniform, "record": record}


def _without_infinities(value: Any) -> Any:
    """JSON knows no infinity: a loss that isn't finite is null."""
    if isinstance(value, dict):
        return {name: _without_infinities(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
