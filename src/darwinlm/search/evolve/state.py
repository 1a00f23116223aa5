"""What a search needs to go on after it was killed: written whole after every generation, checked when it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from darwinlm.artifact import damaged, read_json, write_json
from darwinlm.search.predict.surrogate import Observation
from darwinlm.search.problem.space import Allocation


@dataclass
class Generation:
    """One line of the history.

    Attributes:
        number: from 0, the start.
        kl: of the best allocation on the tokens of the last stage.
        improved: whether it beat its parent.
        evaluations: candidates evaluated so far.
        seconds: of wall-clock so far.
    """

    number: int
    kl: float
    improved: bool
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class FirstParent:
    """What a search starts from.

    Attributes:
        allocation: the first parent.
        tried: allocations that needn't be tried again.
        observations: changes of the loss that were seen on the way to it.
        others: of those that were tried, what promises most behind it, best first.
    """

    allocation: Allocation
    tried: Sequence[Allocation] = ()
    observations: Sequence[Observation] = ()
    others: Sequence[Allocation] = ()


@dataclass
class EvolutionState:
    """Everything that a resumed search needs.

    Attributes:
        parent: the best allocation so far.
        kl: its loss on the tokens of the last stage.
        parent_losses: sum of its KL over each fitness sequence.
        done: generations finished.
        seconds: wall-clock used.
        seen: every allocation that was a candidate.
        best: distinct allocations with the least loss on the tokens of the last stage, best first.
        observations: changes of the loss on the tokens of the first stage.
        history: one entry per generation.
        ended: why the search is over, empty while it isn't.
    """

    parent: Allocation
    kl: float
    parent_losses: list[float]
    done: int = 0
    seconds: float = 0.0
    seen: list[Allocation] = field(default_factory=list)
    best: list[tuple[float, Allocation]] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    history: list[Generation] = field(default_factory=list)
    ended: str = ""

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path, costs: Sequence[Sequence[int]]) -> EvolutionState:
        """Read what `save` wrote.

        Args:
            path: of the file.
            costs: of each level of each module; allocations must fit them.

        Raises:
            ArtifactError: it can't be read, or holds another search's state.
        """
        tree: Any = read_json(path)
        try:
            tree["parent"] = tuple(tree["parent"])
            tree["seen"] = [tuple(allocation) for allocation in tree["seen"]]
            tree["best"] = [(float(loss), tuple(allocation)) for loss, allocation in tree["best"]]
            found = tree["observations"]
            tree["observations"] = [(tuple(a), tuple(b), float(change), float(by)) for a, b, change, by in found]
            tree["history"] = [Generation(**entry) for entry in tree["history"]]
            state = cls(**tree)
            known = [state.parent, *state.seen, *(allocation for _, allocation in state.best)]
            fits = all(_fits(allocation, costs) for allocation in known) and math.isfinite(state.kl)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"it doesn't hold the state of a search: {error}") from error
        if not fits or len(state.history) != state.done + 1:
            raise damaged(path, "it holds the state of another search")
        return state


def _fits(allocation: Allocation, costs: Sequence[Sequence[int]]) -> bool:
    return len(allocation) == len(costs) and all(
        isinstance(level, int) and 0 <= level < len(row) for level, row in zip(allocation, costs, strict=True)
    )
