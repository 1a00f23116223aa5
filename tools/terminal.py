"""Draw the terminal output of a command as SVG, for the top of the README.

    COLUMNS=108 darwinlm demo --out runs/demo > demo.log
    python tools/terminal.py demo.log --command "make demo" --width 108 --out docs/demo.svg

The log is shown unchanged, with its colours (from `script -qc COMMAND demo.log`). `--skip` replaces lines that match a
regular expression with one dim ellipsis. The picture loads no fonts, and the same log always gives the same picture.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

FONTS = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
NAME = "terminal"
"""Prefix of every id in the picture; without one, ids are random."""


def lines_of(log: str, skip: str | None) -> list[Text]:
    """Lines of a log in their final state on a terminal, without trailing space."""
    shown: list[Text] = []
    for line in log.replace("\r\n", "\n").split("\n"):
        if line.startswith(("Script started on", "Script done on")):
            continue
        text = Text.from_ansi(line.rpartition("\r")[2])  # the last state of a progress bar
        text.rstrip()
        if skip is not None and re.search(skip, text.plain):
            if not shown or shown[-1].plain != "…":
                shown.append(Text("…", style="dim"))
        elif text.plain or (shown and shown[-1].plain):
            shown.append(text)
    while shown and not shown[-1].plain:
        shown.pop()
    return shown


def picture(log: str, *, width: int, command: str | None = None, skip: str | None = None) -> str:
    """SVG of a terminal with a log in it.

    Args:
        log: Output of the command.
        width: Number of columns; longer lines are folded.
        command: Command line, shown above the output and as the title.
        skip: Regular expression for lines to leave out.
    """
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True, legacy_windows=False)
    if command is not None:
        console.print(Text.assemble(("$ ", "bright_green"), (command, "bold")))
    for line in lines_of(log, skip):
        console.print(line, overflow="fold", no_wrap=False, highlight=False)
    svg = console.export_svg(title=command or "", theme=SVG_EXPORT_THEME, unique_id=NAME)
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", FONTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("log", type=Path, help="Output of the command.")
    parser.add_argument("--out", type=Path, required=True, help="SVG file.")
    parser.add_argument("--command", help="Command line to show above the output.")
    parser.add_argument("--width", type=int, default=100, help="Columns of the terminal.")
    parser.add_argument("--skip", metavar="REGEX", help="Lines to leave out.")
    options = parser.parse_args()
    try:
        log = options.log.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"error: can't read {options.log}: {error}")
    options.out.write_text(
        picture(log, width=options.width, command=options.command, skip=options.skip), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
