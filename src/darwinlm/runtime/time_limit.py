"""The time limit of a run, which ends some of its steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from darwinlm.runtime import parallel
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.figures import StageTime


@dataclass(frozen=True)
class TimeLimit:
    """The limit of a run.

    Attributes:
        seconds: Time of the whole run.
        begun: Its start on the monotonic clock.
        planned: Seconds of its steps in order, on an idle machine.
        ending: Names of the steps that end early.
        preset: Name of the amounts of text that fit into it.
    """

    seconds: float
    begun: float
    planned: Mapping[str, float]
    ending: frozenset[str]
    preset: str

    @property
    def used(self) -> float:
        """Seconds so far."""
        return working_time() - self.begun

    @property
    def fixed(self) -> float:
        """Planned seconds of the steps that can't end early."""
        return sum(seconds for name, seconds in self.planned.items() if name not in self.ending)

    def part(self, runs: int) -> TimeLimit:
        """The limit of one of so many runs that share the time that is left."""
        return replace(self, seconds=self.used + (self.seconds - self.used) / runs)

    def left(self, step: str, times: Iterable[StageTime]) -> float:
        """Seconds after which a step must end.

        After the steps that end early, the later steps have their time, at the speed of the run so far. The same in all
        processes.
        """
        taken = {time.name: time.seconds for time in times if not time.reused}
        timed = [name for name in taken if self.planned.get(name)]
        slower = sum(taken[name] for name in timed) / sum(self.planned[name] for name in timed) if timed else 1.0
        later = [*self.planned][[*self.planned].index(step) :]
        fixed = sum(self.planned[name] for name in later if name not in self.ending)
        shared = sum(self.planned[name] for name in later if name in self.ending)
        room = self.seconds - self.used - slower * fixed
        return parallel.broadcast(max(room, 0.0) * self.planned[step] / shared)
