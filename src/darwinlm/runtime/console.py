"""Progress of a run in the terminal: one line for the current stage, then one line when it is finished.

In a terminal and in a notebook the line is redrawn in place. Elsewhere each step is a separate line, at a limited rate,
so that log files stay short. The logger `darwinlm` gets all messages too, for programs that call ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Column

from darwinlm.runtime import amounts
from darwinlm.runtime.amounts import NATS, duration
from darwinlm.runtime.notebook_line import NotebookLine
from darwinlm.runtime.safe_console import Terminal

if TYPE_CHECKING:
    from darwinlm.runtime.tracking import Tracker

LOGGER = logging.getLogger("darwinlm")
LOGGER.addHandler(logging.NullHandler())

SECONDS = 10.0
"""Least time between two lines of a stage without a terminal, and after the slower first step before a time is told."""


KNOWN_SHARE, KNOWN_SECONDS = 0.05, 60.0
"""Share of the steps, or time, after which the time that is left is told: the rate of the first few is no guide."""


@dataclass
class _StageProgress:
    title: str
    begun: float
    what: str = ""
    done: int = 0
    total: int = 0
    loss: tuple[float, float] | None = None
    unit: str = NATS
    left: float | None = None
    at: float = 0.0
    resumes: bool = False
    first: tuple[float, int] | None = None
    """End of this part's first step in this process, which also loads and compiles: time and finished steps."""

    def __str__(self) -> str:
        """The line, such as `search  generation 4/6 · KL 1.461 → 1.244 · 2 min 10 s left`."""
        if not self.total:
            return f"{self.title}  {duration(time.monotonic() - self.begun)}"
        parts = [f"{self.what} {self.done}/{self.total}".strip()]
        if self.loss is not None:
            initial, best = self.loss
            show = amounts.nats if self.unit == NATS else amounts.three_digits
            parts.append(f"{amounts.loss(initial, self.unit)} → {show(best)}")
        seconds = self._seconds_left()
        if seconds is not None:
            parts.append(f"{duration(seconds)} left")
        return f"{self.title}  {' · '.join(parts)}"

    def _seconds_left(self) -> float | None:
        if self.first is None or self.done >= self.total:
            return None
        estimates = [] if self.left is None else [self.left]
        seconds, steps = self.at - self.first[0], self.done - self.first[1]
        known = steps >= KNOWN_SHARE * self.total or seconds >= KNOWN_SECONDS
        if steps > 0 and seconds >= SECONDS and known:
            estimates.append((self.total - self.done) * seconds / steps)
        return max(0.0, min(estimates) - (time.monotonic() - self.at)) if estimates else None


class Reporter:
    """Prints stages to a console.

    `on_progress` is called with the stage's title and the numbers of finished and of all steps, also if it is `quiet`.

    Attributes:
        tracker: Receives figures of the stages while they work; None if nothing does.
    """

    tracker: Tracker | None = None

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.on_progress = on_progress
        self.console = Terminal(quiet=True) if quiet else console or Terminal()
        self._current: _StageProgress | None = None
        self._line: NotebookLine | None = None
        self._last_line = time.monotonic()

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Show the progress of a stage while the block runs."""
        outer, current = self._current, _StageProgress(title, time.monotonic())
        first = outer is None and not self.console.quiet
        live = first and self.console.is_terminal
        if first and self.console.is_jupyter:
            self._line = NotebookLine()
        column = Column(no_wrap=True, overflow="ellipsis")
        columns = (SpinnerColumn(), TextColumn("{task.fields[current]}", markup=False, table_column=column))
        with Progress(*columns, console=self.console, transient=True, disable=not live) as progress:
            progress.add_task(title, total=None, current=current)
            self._current, self._last_line = current, time.monotonic()
            try:
                yield
            finally:
                self._current = outer
                if outer is None and self._line is not None:
                    self._line.end()
                    self._line = None

    def advance(self, done: int, total: int) -> None:
        """Report the number of finished steps of the stage or of its current part; 0 starts the clock."""
        progress = self._current
        if progress is None:
            return
        if self.on_progress is not None:
            self.on_progress(progress.title, done, total)
        now = time.monotonic()
        resumed, progress.resumes = progress.resumes and done > 0, False
        if resumed and done < total:
            self.say(f"{progress.title}: resumes after {progress.what or 'step'} {done} of {total}")
        if resumed or not done:
            progress.first = None
        elif progress.first is None:
            progress.first = (now, done)
        progress.done, progress.total, progress.at = done, total, now
        if self._line is not None:
            self._line.show(str(progress), done, total)
        elif done and not self.console.is_terminal and now - self._last_line >= SECONDS:
            self.say(str(progress))

    def step(
        self,
        done: int,
        total: int,
        *,
        what: str,
        loss: tuple[float, float] | None = None,
        unit: str = NATS,
        left: float | None = None,
    ) -> None:
        """Report the progress of a part of the stage, with figures.

        `what` names the part or its steps. `loss` is the distance to the dense model at its start and the lowest so
        far, in `unit`. `left` are the seconds until the time limit of the part.
        """
        progress = self._current
        if progress is not None:
            if progress.what != what:
                progress.first = None
            progress.what, progress.loss, progress.unit, progress.left = what, loss, unit, left
        self.advance(done, total)

    def measured(self, step: int, figures: Mapping[str, int | float]) -> None:
        """Send figures of a step of the current stage to the tracker and to the log."""
        title = self._current.title if self._current is not None else ""
        LOGGER.debug("%s, step %d: %s", title, step, figures)
        if self.tracker is not None:
            self.tracker.log(title, step, figures)

    def resumes(self) -> None:
        """Announce that the stage was interrupted; the next reported step is where it resumes."""
        if self._current is not None:
            self._current.resumes = True

    def say(self, message: str) -> None:
        """Print one line, and log it."""
        LOGGER.info("%s", message)
        self.console.print(message, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)
        self._last_line = time.monotonic()
