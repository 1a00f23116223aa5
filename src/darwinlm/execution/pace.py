"""A time limit as the executor sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from darwinlm.execution.run import Run
    from darwinlm.runtime.figures import TimeFigures


class Pace(Protocol):
    """Decides before each stage with which settings the rest of a run fits into its time."""

    def before(self, stage: str, run: Run) -> list[str]:
        """Assignments that hold from this stage on; empty if nothing changes."""

    def ends(self) -> float | None:
        """When the evaluation must end, on the monotonic clock; None before it is known."""

    def figures(self) -> TimeFigures | None:
        """The limit, the time used, and what was shortened."""
