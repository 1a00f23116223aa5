"""Draw `docs/accuracy.svg` from a table in `docs/results.md`: accuracy against the tokens that a model was trained on.

python -m lab.pictures.accuracy_plot
"""

from __future__ import annotations

from collections import defaultdict

from matplotlib import rc_context, style
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from lab.pictures.results_plot import DOCS, plain, table

HEADING = "## Accuracy against training tokens"
COLOURS = {"darwinlm": "#0d3f73", "SmolLM2": "#c0640f", "Pythia-160M": "#8a4fa3", "Pythia-70M": "#6a7079"}


def draw() -> None:
    """Draw a line for each model; the dense one is a level."""
    rows = table((DOCS / "results.md").read_text(encoding="utf-8"), HEADING)
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        lines[f"{row['model']} ({row['block parameters']} in blocks)"].append(
            (float(row["tokens"].replace(",", "")), float(row["mean"]))
        )
    with style.context("default"), rc_context({"svg.fonttype": "none", "svg.hashsalt": "darwinlm", "font.size": 9}):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axis = figure.subplots()
        for name, points in lines.items():
            tokens, means = zip(*points, strict=True)
            if "dense" in name:
                axis.axhline(means[0], color="#6a7079", linestyle="--", linewidth=1)
                axis.annotate(name, (5e4, means[0]), (0, 3), textcoords="offset points", color="#6a7079")
                continue
            colour = next(value for start, value in COLOURS.items() if name.startswith(start))
            ours = name.startswith("darwinlm")
            axis.plot(tokens, means, color=colour, marker="o", linewidth=2.4 if ours else 1.4, label=name)
        axis.set_xscale("log")
        axis.set_xlim(4e4, 6e11)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set(xlabel="training tokens", ylabel="mean of SciQ, ARC-E and PIQA, %")
        axis.legend(frameon=False, loc="lower right")
        plain(axis)
        figure.savefig(DOCS / "accuracy.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw()
