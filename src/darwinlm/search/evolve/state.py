"""State of a search for resuming: written as a whole after every generation, and validated when it is read."""

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
    """One entry of the history.

    Attributes:
        number: 0 for the start.
        kl: Loss of the best allocation on the tokens of the last stage.
        improved: Whether it beat its parent.
        moved: Number of modules whose level changed.
        evaluations: Number of candidates evaluated so far.
        seconds: Wall-clock time so far.
    """

    number: int
    kl: float
    improved: bool
    moved: int
    evaluations: int
    seconds: float


@dataclass
class SearchState:
    """State of a search.

    Attributes:
        parent: Best allocation so far.
        kl: Loss of the parent on the tokens of the last stage.
        parent_losses: Sum of its KL over each fitness sequence.
        done: Number of finished generations.
        misses: Generations without improvement minus later ones with one; at least 0.
        seconds: Wall-clock time used.
        seen: All candidates so far, the first parent first.
        slopes: First-order losses around the parent, averaged over all windows so far.
        observations: Change of the loss of each child, on the largest text on which it was evaluated.
        history: One entry per generation, the first parent first.
        ended: Reason why the search ended; empty while it runs.
    """

    parent: Allocation
    kl: float
    parent_losses: list[float]
    done: int = 0
    misses: int = 0
    seconds: float = 0.0
    seen: list[Allocation] = field(default_factory=list)
    slopes: list[list[float]] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    history: list[Generation] = field(default_factory=list)
    ended: str = ""

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path, costs: Sequence[Sequence[int]]) -> SearchState:
        """Read what `save` wrote.

        Allocations and slopes must have the shapes of `costs`.

        Raises:
            ArtifactError: The file can't be read, or holds another search's state.
        """
        tree: Any = read_json(path)
        try:
            tree["parent"] = tuple(tree["parent"])
            tree["seen"] = [tuple(allocation) for allocation in tree["seen"]]
            tree["observations"] = [
                (tuple(parent), tuple(child), float(change), float(by))
                for parent, child, change, by in tree["observations"]
            ]
            tree["history"] = [Generation(**entry) for entry in tree["history"]]
            state = cls(**tree)
            fits = all(_fits(allocation, costs) for allocation in (state.parent, *state.seen))
            fits &= not state.slopes or [len(row) for row in state.slopes] == [len(row) for row in costs]
            fits &= math.isfinite(state.kl) and state.misses >= 0
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(path, f"it doesn't hold the state of a search: {error}") from error
        if not fits or len(state.history) != state.done + 1:
            raise damaged(path, "it holds the state of another search")
        return state


def _fits(allocation: Allocation, costs: Sequence[Sequence[int]]) -> bool:
    return len(allocation) == len(costs) and all(
        isinstance(level, int) and 0 <= level < len(row) for level, row in zip(allocation, costs, strict=True)
    )
