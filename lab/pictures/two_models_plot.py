"""Draw `docs/two-models.svg` from a table in `docs/results.md`: KL of a 0.5B and a 135M against the share that is kept.

python -m lab.pictures.two_models_plot
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context, style
from matplotlib.figure import Figure

from lab.pictures.results_plot import DOCS, plain, table

HEADING = "## A 0.5B and a 135M at four sizes"
COLOURS = {"0.5B": "#0d3f73", "135M": "#c0640f"}
METHODS = {"uniform": ":", "refit": "-"}


def draw(text: str, to: Path) -> None:
    """Draw a line for each model and method."""
    rows = table(text, HEADING)
    with style.context("default"), rc_context({"svg.fonttype": "none", "svg.hashsalt": "darwinlm", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axis = figure.subplots()
        for model, colour in COLOURS.items():
            for method, line in METHODS.items():
                points = [(float(row["kept"].strip(" %")), float(row[method])) for row in rows if row["model"] == model]
                kept, losses = zip((100.0, 0.0), *points, strict=True)
                name = f"{model}, {'equal layers' if method == 'uniform' else 'search and refit'}"
                axis.plot(kept, losses, color=colour, linestyle=line, marker="o", markersize=4, label=name)
        axis.set(xlabel="block parameters kept, %", ylabel="KL on own chats, nats/token")
        axis.invert_xaxis()
        axis.legend(frameon=False)
        plain(axis)
        figure.savefig(to, metadata={"Date": None})


if __name__ == "__main__":
    draw((DOCS / "results.md").read_text(encoding="utf-8"), DOCS / "two-models.svg")
