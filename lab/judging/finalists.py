"""Different allocations of one size from one database: the finalists that a measure could choose from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.levels import ModuleLevels
from darwinlm.model.units.space import Allocation, PerLevel
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.search.evolution import evolve
from darwinlm.steps.search.fitness import Clock, Fitness
from darwinlm.steps.search.propose import knapsack_start
from darwinlm.steps.search.search_method import Offspring, SearchInputs
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.search.state import SearchState

LATE = 0.1
"""Share of the blocks, from the end, that the finalist without late blocks lacks."""
APART = 0.02
"""Share of the block parameters that lie elsewhere in two finalists of one search."""

Allowed = Callable[[ModuleLevels, int], bool]
"""Whether a module may have a level."""


def restricted(problem: Problem, allowed: Allowed) -> Problem:
    """The problem in which levels that aren't allowed cost more than the budget."""
    beyond = problem.budget.upper + 1
    costs = tuple(
        tuple(cost if allowed(module, level) else beyond for level, cost in enumerate(row))
        for module, row in zip(problem.space.modules, problem.cost.costs, strict=True)
    )
    return replace(problem, cost=CostModel(problem.cost.unit, costs, problem.cost.fixed))


def without_late_blocks(problem: Problem) -> Problem:
    """The problem in which the last blocks are removed."""
    blocks = 1 + max(module.block for module in problem.space.modules)
    first = blocks - max(1, round(LATE * blocks))
    return restricted(problem, lambda module, level: module.block < first or level == 0)


def with_whole_attention(problem: Problem) -> Problem:
    """The problem in which every attention stays whole."""
    return restricted(problem, lambda module, level: module.kind != "attention" or level == len(module.levels) - 1)


@dataclass(frozen=True)
class Finder:
    """Searches restricted problems as the run's search does, from the allocation that single losses predict."""

    fitness: Fitness
    database: DatabaseReader
    settings: SearchSettings
    losses: PerLevel
    say: Callable[[str], None]

    def best(self, problem: Problem, state_file: Path) -> Allocation:
        """The best allocation of a problem. Raises BudgetError if there is none."""
        inputs = SearchInputs(self.fitness, problem, self.database, self.settings, self.losses, True, self.say)
        proposed = self.settings.method.begin(inputs)

        def propose(state: SearchState) -> Offspring:
            self.fitness.placed.begin(state.parent)
            return proposed(state)

        found = evolve(
            self.fitness,
            problem,
            self.settings,
            lambda: knapsack_start(problem, self.losses),
            state_file,
            clock=Clock(),
            propose=propose,
        )
        return found.parent


def others_of(
    state: SearchState, problem: Problem, kls: Callable[[list[Allocation]], list[float]], count: int
) -> list[Allocation]:
    """The best candidates of a search that differ from its answer, and from each other."""
    later = state.observations[len(state.observations) // 3 :]
    ranked = sorted({child: change for _, child, change, _ in later}.items(), key=lambda pair: pair[1])
    pool = [child for child, _ in ranked if child != state.parent][: 3 * count]
    chosen: list[Allocation] = [state.parent]
    for _, child in sorted(zip(kls(pool), pool, strict=True)):
        if all(apart(problem, child, other) >= APART for other in chosen):
            chosen.append(child)
    return chosen[1 : count + 1]


def apart(problem: Problem, first: Allocation, second: Allocation) -> float:
    """Share of the block parameters that lie elsewhere in two allocations."""
    rows = [[level.params for level in module.levels] for module in problem.space.modules]
    moved = sum(abs(row[a] - row[b]) for row, a, b in zip(rows, first, second, strict=True)) / 2
    return moved / problem.space.params(first)
