"""State of a search for resuming: written as a whole after every generation, and validated when it is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from darwinlm.model.units.space import Allocation
from darwinlm.runtime.artifact import damaged, read_as, write_json
from darwinlm.steps.search.prediction import Observation


@dataclass
class Generation:
    """One entry of the history; the start has the number 0.

    KL is that of the best allocation on the tokens of the last stage; the levels of `moved` modules changed.
    Evaluations and seconds are those so far.
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
        losses: Sum of the KL over each fitness sequence, of the best allocations of the last generations, the parent
            last.
        misses: Generations without improvement minus later ones with one; at least 0.
        seen: All candidates so far, the first parent first.
        slopes: First-order losses around the parent, averaged over all windows so far.
        observations: Change of the loss of each child, on the largest text on which it was evaluated.
        history: One entry per generation, the first parent first.
        ended: Reason why the search ended; empty while it runs.
    """

    parent: Allocation
    kl: float
    losses: list[list[float]]
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

        Allocations and slopes must have the shapes of `costs`. Raises ArtifactError if the file can't be read, or holds
        another search's state.
        """
        state = read_as(path, cls)
        sizes = [len(row) for row in costs]
        fits = all(
            len(allocation) == len(sizes)
            and all(0 <= level < size for level, size in zip(allocation, sizes, strict=True))
            for allocation in (state.parent, *state.seen)
        )
        fits &= not state.slopes or [len(row) for row in state.slopes] == sizes
        fits &= len(state.history) == state.done + 1 and state.misses >= 0 and bool(state.losses)
        if not fits or not math.isfinite(state.kl):
            raise damaged(path, "it holds the state of another search")
        return state
