"""Draw the lines of `recovery.py`: KL to the dense model on held-out text against training tokens."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib import rc_context, style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from darwinlm.runtime.errors import DataError

COLOURS = ("#2a6fb8", "#c0640f", "#23845a", "#8a4fa3", "#6a7079")


def draw(lines: Path, to: Path) -> None:
    """Draw a panel for each held-out text, with a line for each model's long training and the range of its short ones.

    Raises:
        DataError: The file is missing, isn't in JSON lines, or is empty.
    """
    lines_read = read(lines)
    sources = list(dict.fromkeys(source for line in lines_read for source in line["held_out"]))
    names = list(dict.fromkeys(line["model"] for line in lines_read))
    with style.context("default"), rc_context({"svg.fonttype": "none", "svg.hashsalt": "darwinlm", "font.size": 9}):
        figure = Figure(figsize=(4.6 * len(sources), 3.6), layout="constrained")
        for axis, source in zip(figure.subplots(1, len(sources), squeeze=False)[0], sources, strict=True):
            for number, name in enumerate(names):
                _draw_model(axis, name, COLOURS[number % len(COLOURS)], points(lines_read, name, source))
            axis.set_title(source, loc="left")
            axis.set_xlabel("tokens trained on")
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:,.0f}k" if value else "0"))
            axis.set_ylim(bottom=0)
            axis.grid(visible=True, color="#dcdfe4", linewidth=0.7)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False)
        figure.supylabel("KL to the dense model, nats/token")
        to.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(to, metadata={"Date": None} if to.suffix == ".svg" else None, dpi=150)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file. Raises DataError."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"can't read lines of the recovery benchmark in {path}: {error}") from error
    lines = [line for line in lines if line.get("benchmark") == "recovery"]
    if not lines:
        raise DataError(f"{path} holds no lines of the recovery benchmark")
    return lines


def points(lines: list[dict[str, Any]], name: str, source: str) -> dict[str, dict[int, list[float]]]:
    """KL of a model on a text, by kind of training and tokens, with one value for each seed."""
    values: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["model"] == name and source in line["held_out"]:
            values[line["kind"]][line["tokens"]].append(line["held_out"][source]["kl"])
    return values


def _draw_model(axis: Any, name: str, colour: str, values: dict[str, dict[int, list[float]]]) -> None:
    long = sorted((tokens, kls[0]) for kind in ("start", "long") for tokens, kls in values.get(kind, {}).items())
    axis.plot(*zip(*long, strict=True), color=colour, marker="o", markersize=4, linewidth=1.5, label=name)
    for tokens, kls in values.get("short", {}).items():
        mean = sum(kls) / len(kls)
        spread = [[mean - min(kls)], [max(kls) - mean]]
        label = f"{name}, {len(kls)} short training(s)"
        axis.errorbar([tokens], [mean], yerr=spread, color=colour, marker="D", mfc="white", capsize=3, label=label)
