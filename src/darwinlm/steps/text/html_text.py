"""The visible text of an HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_HIDDEN = frozenset({"title", "script", "style", "template", "noscript", "svg"})
_INLINE = frozenset(
    re.findall(
        r"\w+",
        "a abbr b bdi bdo cite code data del dfn em font i img ins kbd label mark q s samp small span strong sub sup "
        "time tt u var wbr",
    )
)
"""Elements that belong to a line; others begin a line and end it."""


class _VisibleText(HTMLParser):
    """Collects the text of a page; `lines` joins it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._hidden: list[str] = []
        self._preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _HIDDEN:
            self._hidden.append(tag)
        self._preformatted += tag == "pre"
        self._border(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]
        self._preformatted = max(0, self._preformatted - (tag == "pre"))
        self._border(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            kept = data if self._preformatted else " ".join(f"|{data}|".split())[1:-1]
            self._parts.append(kept)

    def _border(self, tag: str) -> None:
        if tag not in _INLINE and not self._hidden:
            self._parts.append("\n")

    def lines(self) -> str:
        """The text, a line for each block; at most one empty line separates two."""
        lines: list[str] = []
        for line in "".join(self._parts).split("\n"):
            if line.strip() or (lines and lines[-1]):
                lines.append(line.rstrip() if line.strip() else "")
        return "\n".join(lines).strip("\n")


def visible_text(page: str) -> str:
    """The text that a browser would show of a page: without its head, scripts and styles, and with a line per block."""
    parser = _VisibleText()
    parser.feed(page)
    parser.close()
    return parser.lines()
