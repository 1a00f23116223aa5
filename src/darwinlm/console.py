"""What a run tells the person who waits for it: one line per stage, with a bar while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Reporter:
    """Prints stages to a console; `quiet` prints nothing."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(quiet=quiet)
        self._progress: Progress | None = None

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Show a bar for a stage while the block runs."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            self._progress = progress
            self._task = progress.add_task(title, total=None)
            try:
                yield
            finally:
                self._progress = None

    def advance(self, done: int, total: int) -> None:
        """Move the bar of the present stage."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done, total=total)

    def say(self, message: str) -> None:
        """Print one line."""
        self.console.print(message, highlight=False, markup=False)
