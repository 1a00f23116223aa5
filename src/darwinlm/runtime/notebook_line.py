"""The line of progress in a notebook: IPython replaces it in place, without widgets that a server must know."""

from __future__ import annotations

import time
from html import escape
from typing import TYPE_CHECKING

from darwinlm.runtime.limits import visible

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

PAUSE = 0.25
"""Least seconds between two updates: each is a message to the browser."""


class NotebookLine:
    """A bar and words below a cell, which vanish when the stage ends."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle: DisplayHandle | None = display(HTML(""), display_id=True)
        self._shown = 0.0

    def show(self, words: str, done: int, total: int) -> None:
        """Show the words and how much is done; the end of a part is always shown."""
        now = time.monotonic()
        if self._handle is None or (now - self._shown < PAUSE and done < total):
            return
        self._shown = now
        bar = f'<progress value="{done}" max="{max(total, 1)}" style="width:12em"></progress> ' if total else ""
        self._handle.update(self._html(f"<div>{bar}<code>{escape(visible(words))}</code></div>"))

    def end(self) -> None:
        """Remove it."""
        if self._handle is not None:
            self._handle.update(self._html(""))
