"""Write the tables of docs/results.md from the measured figures in docs/results.yaml.

    python tools/results.py

`--check` writes nothing and fails if the page is out of date.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import yaml

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "results.md"
HOW = ("model", "budget", "data", "seeds", "machine", "date", "command")
"""What an entry says about its measurement."""
TABLE = re.compile(r"(<!-- table: ([\w.-]+) -->\n).*?(<!-- end -->)", flags=re.S)

Cell = str | list[str]


class Results(NamedTuple):
    """An entry of docs/results.yaml: how its figures were measured, and their table."""

    how: dict[str, str]
    columns: list[str]
    rows: list[list[Cell]]


def read_results() -> dict[str, Results]:
    """All entries by name, every figure as it is written. Raises ValueError if an entry isn't complete."""
    entries = yaml.load((DOCS / "results.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - text
    read = {}
    for name, entry in entries.items():
        if missing := [key for key in (*HOW, "columns", "rows") if not entry.get(key)]:
            raise ValueError(f"docs/results.yaml: {name} lacks {', '.join(missing)}")
        if wrong := [row for row in entry["rows"] if len(row) != len(entry["columns"])]:
            raise ValueError(f"docs/results.yaml: {name} has {len(entry['columns'])} columns, but a row {wrong[0]}")
        read[name] = Results({key: entry[key] for key in HOW}, entry["columns"], entry["rows"])
    return read


def summarised(seeds: list[str]) -> tuple[str, str]:
    """Mean and standard deviation of the figures of several seeds, with as many decimals as these."""
    decimals = len(seeds[0].partition(".")[2])
    figures = [float(figure) for figure in seeds]
    return f"{statistics.fmean(figures):.{decimals}f}", f"{statistics.stdev(figures):.{decimals}f}"


def written(cell: Cell) -> str:
    """A cell of the page."""
    return cell if isinstance(cell, str) else f"{', '.join(cell)}: {' ± '.join(summarised(cell))}"


def table(results: Results) -> str:
    """The table of an entry in Markdown."""
    lines = [
        results.columns,
        ["---"] * len(results.columns),
        *([written(cell) for cell in row] for row in results.rows),
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def results_page() -> str:
    """The page with its present tables."""
    entries = read_results()
    text = PAGE.read_text(encoding="utf-8")
    return TABLE.sub(lambda place: place[1] + table(entries[place[2]]) + place[3], text)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    text = results_page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit("error: docs/results.md is out of date: run python tools/results.py")


if __name__ == "__main__":
    main()
