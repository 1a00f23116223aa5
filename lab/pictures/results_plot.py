"""Draw `docs/results.svg` from the tables in `docs/results.md`: KL against size, and tasks against KL at half.

python -m lab.pictures.results_plot
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context, style
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZES = {"### 75 %": 75, "## Half of the block parameters, many methods": 50, "### 35 %": 35}
LINES = {
    "ZipLM": "#8a4fa3",
    "uniform": "#6a7079",
    "the paper's search, candidates not trained": "#c0640f",
    "ours, one shot": "#7fb0e0",
    "ours + refit": "#2a6fb8",
    "ours + refit + recovery": "#0d3f73",
}
"""Methods in the first panel, and their colours."""


def table(text: str, heading: str) -> list[dict[str, str]]:
    """Rows of the first table after a heading, by column."""
    lines = text[text.index(f"{heading}\n") :].splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("| "))
    rows: list[list[str]] = []
    for line in lines[begin:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def kl(row: dict[str, str]) -> float:
    """KL on the mixture: the second figure of its cell."""
    return float(row["mixture"].split(", ")[1])


def draw(text: str, to: Path) -> None:
    """Draw both panels."""
    tables = {size: table(text, heading) for heading, size in SIZES.items()}
    with style.context("default"), rc_context({"svg.fonttype": "none", "svg.hashsalt": "darwinlm", "font.size": 9}):
        figure = Figure(figsize=(9.2, 3.8), layout="constrained")
        by_size, by_task = figure.subplots(1, 2)
        for name, colour in LINES.items():
            found = [(size, kl(row)) for size, rows in tables.items() for row in rows if row["method"] == name]
            by_size.plot(
                *zip((100, 0.0), *found, strict=True), color=colour, marker="o", markersize=4, label=name.split(",")[0]
            )
        by_size.set(title="KL against size", xlabel="block parameters kept, %", ylabel="KL on the mixture, nats/token")
        by_size.invert_xaxis()
        by_size.legend(frameon=False)
        for number, row in enumerate(tables[50]):
            mean, error = (float(part) for part in row["mean"].split(" ± "))
            if (loss := kl(row)) < 3:
                by_task.errorbar(loss, mean, yerr=error, color="#2a6fb8", marker="o", markersize=4, capsize=2)
                by_task.annotate(
                    row["method"].split(",")[0],
                    (loss, mean),
                    (4, 4 - 12 * (number % 2)),
                    textcoords="offset points",
                    size=7,
                )
        by_task.set(title="Tasks against KL, at half", xlabel="KL on the mixture", ylabel="mean of six tasks, %")
        for axis in (by_size, by_task):
            plain(axis)
        figure.savefig(to, metadata={"Date": None})


def plain(axis: Any) -> None:
    """Grid and two spines."""
    axis.grid(visible=True, color="#dcdfe4", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw((DOCS / "results.md").read_text(encoding="utf-8"), DOCS / "results.svg")
