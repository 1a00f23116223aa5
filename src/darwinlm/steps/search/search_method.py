"""What a search method is: how the children of a generation are proposed.

To add one, register a `SearchMethod` in a module of its own and import that in `search_settings.py`, or register it in
a script; `search.method` names it. The loop around it, the budget, selection, resuming and the report are the same for
all.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from darwinlm.runtime.registry import Extension, Extensions
from darwinlm.runtime.step import Cost

if TYPE_CHECKING:
    from darwinlm.model.objective.objective import Window
    from darwinlm.model.units.space import Allocation, PerLevel
    from darwinlm.steps.budget.problem import Problem
    from darwinlm.steps.database.store import DatabaseReader
    from darwinlm.steps.search.fitness import Fitness
    from darwinlm.steps.search.search_amounts import SearchAmounts
    from darwinlm.steps.search.state import SearchState
    from darwinlm.steps.workload import Workload


@dataclass(frozen=True)
class Offspring:
    """The children of one generation.

    Attributes:
        children: New allocations within the budget; none ends the search.
        slopes: Numbers for every level of every module that the method wants to keep: `gradient` stores first-order
            losses around the parent. The next generation finds them in `SearchState.slopes`.
        window: Sequences on which the first round compares them. Those that are worse than the parent there go no
            further, but in the first generation. None takes the beginning of the text, and all go on.
    """

    children: list[Allocation]
    slopes: list[list[float]] = field(default_factory=list)
    window: Window | None = None


Propose = Callable[["SearchState"], Offspring]
"""Proposes the children of a generation. What it learns, it takes from the state, which an interrupted search resumes:
the parent, all candidates so far, and the measured change of the loss of each (`observations`)."""


@dataclass(frozen=True)
class SearchInputs:
    """What a method can use.

    Attributes:
        losses: Predicted loss of every level of every module alone.
        estimated: Whether these are estimates of the KL in nats per token, rather than local errors.
        say: Shows a message to the user.
    """

    fitness: Fitness
    problem: Problem
    database: DatabaseReader
    settings: SearchAmounts
    losses: PerLevel
    estimated: bool
    say: Callable[[str], None]


class SearchMethod(Extension):
    """A way to propose the children of a generation; its fields are its settings.

    Attributes:
        words: How the report says it: "an evolutionary search of 12 generations WORDS".
        equal_layers: Whether it can keep all layers equal.
        settles: Whether the search ends when its last generations gained nothing significant.
    """

    words: ClassVar[str]
    equal_layers: ClassVar[bool] = False
    settles: ClassVar[bool] = False

    @abstractmethod
    def begin(self, inputs: SearchInputs) -> Propose:
        """What proposes children in this search, which may be a resumed one."""

    def evaluated(self, settings: SearchAmounts) -> tuple[float, ...]:
        """Number of children that each round of a generation evaluates, for plans."""
        return (settings.offspring, *(float(selection.survivors) for selection in settings.rounds[:-1]))

    def cost(self, load: Workload, settings: SearchAmounts) -> Cost:
        """What a whole search takes besides the evaluation of its children, and the activations of its passes."""
        return Cost(0.0, load.passing)


SEARCH_METHODS = Extensions(SearchMethod, "search method", "search.method")
"""Methods by their names for `search.method`."""
