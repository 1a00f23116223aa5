"""Prune, quantise, or both: the table and the pictures of `python -m lab tradeoff`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from darwinlm.runtime import amounts
from darwinlm.runtime.figures import Figures
from darwinlm.runtime.published import short_source
from darwinlm.runtime.tables import Table
from darwinlm.runtime.version import VERSION

HEADINGS = ("model", "type", "file", "KL", "perplexity", "prompt tokens/s", "decode tokens/s", "on the front")
MARKS = "osD^vP*X"
DENSE, PRUNED, FRONT = "#6a7079", "#2a6fb8", "#23845a"
"""Colours."""
LEAST = 1e-3
"""The KL at which smaller ones are drawn: on a logarithmic axis, that of the original has no place."""
UNQUANTISED = ("f32", "f16", "bf16")


class Rate(Figures):
    """Tokens per second: median, lowest and highest of interleaved runs."""

    median: float
    low: float
    high: float


class FileLoss(Figures):
    """One GGUF file in llama.cpp; KL(original ‖ file) is in nats per token.

    `model` is `dense` or the budget of a pruned one, `file` is relative to the file that holds this.
    """

    model: str
    quantisation: str
    file: str
    bytes: int
    kl: float
    perplexity: float


class FileRow(FileLoss):
    """The same with the file's speed."""

    prompt: Rate
    decode: Rate


class Tradeoff(Figures):
    """What tradeoff.json holds. Each table of files is in the order of the command."""

    format: Literal[1] = 1
    version: str = VERSION
    model: str
    calibration: str | None
    text: str
    tokens: int
    seed: int
    engine: str
    settings: dict[str, int]
    rows: tuple[FileRow, ...]


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (x, loss) that no other point beats or equals in both, by ascending x; less is better.

    x counts to three digits, as it is shown: a file that is smaller by less isn't worth more loss.
    """
    best, found = float("inf"), []
    for index in sorted(range(len(points)), key=lambda at: (float(f"{points[at][0]:.3g}"), points[at][1])):
        if points[index][1] < best:
            best = points[index][1]
            found.append(index)
    return found


def tradeoff_table(tradeoff: Tradeoff) -> Table:
    """A row for each file, and what the table says."""
    return Table(HEADINGS, cells(tradeoff), remarks(tradeoff))


def cells(tradeoff: Tradeoff) -> list[tuple[str, ...]]:
    """Rows of cells under `HEADINGS`."""
    on_front = front([(row.bytes, row.kl) for row in tradeoff.rows])
    return [
        (
            row.model,
            row.quantisation,
            amounts.size(row.bytes),
            amounts.nats(row.kl),
            amounts.perplexity(row.perplexity),
            _rate(row.prompt),
            _rate(row.decode),
            "yes" if index in on_front else "no",
        )
        for index, row in enumerate(tradeoff.rows)
    ]


def remarks(tradeoff: Tradeoff) -> list[str]:
    """Sentences below the table: which way wins at which size, the text, and the machine."""
    rows, settings = tradeoff.rows, tradeoff.settings
    best = [rows[index] for index in front([(row.bytes, row.kl) for row in rows])]
    groups = [(way, list(group)) for way, group in groupby(best, key=_way)]
    parts = [f"{way} from {amounts.size(group[0].bytes)}" for way, group in groups]
    return [
        f"Least loss for its size: {', '.join(parts)} on.",
        f"KL to the original and perplexity: {tradeoff.tokens:,} tokens of {short_source(tradeoff.text)}, "
        f"computed by {tradeoff.engine}. Calibration: {short_source(tradeoff.calibration)}, "
        f"seed {tradeoff.seed}.",
        f"Speed: prompts of {settings['prompt_tokens']} tokens, then {settings['new_tokens']} new ones; rounds over "
        f"all files in turn: {settings['rounds']}; threads: {settings['threads']}. Median (lowest to highest).",
        *_unchanged("prompts", rows, lambda row: row.prompt),
        *_unchanged("new text", rows, lambda row: row.decode),
    ]


def _unchanged(what: str, rows: Sequence[FileRow], rate: Callable[[FileRow], Rate]) -> list[str]:
    """The files whose range of speeds meets that of the original's file of the same type, in a sentence."""
    dense = {row.quantisation: rate(row) for row in rows if row.model == "dense"}
    ours = [row for row in rows if row.model != "dense"]
    same = [
        row
        for row in ours
        if dense[row.quantisation].low <= rate(row).high and rate(row).low <= dense[row.quantisation].high
    ]
    names = ", ".join(f"{row.model} {row.quantisation}" for row in same)
    return [f"No measurable change for {what} to the original's file of the same type: {names}."] if same else []


def _way(row: FileRow) -> str:
    if row.quantisation in UNQUANTISED:
        return "the original" if row.model == "dense" else "pruning alone"
    return "quantising alone" if row.model == "dense" else "pruning and quantising"


def _rate(rate: Rate) -> str:
    return f"{amounts.rate(rate.median)} ({amounts.rate(rate.low)} to {amounts.rate(rate.high)})"


def draw_by_size(tradeoff: Tradeoff, to: Path) -> None:
    """Draw KL against the size of the files, as SVG."""
    _draw(tradeoff, to, "file (MB)", lambda row: row.bytes / 1e6, less=True)


def draw_by_speed(tradeoff: Tradeoff, to: Path) -> None:
    """Draw KL against the speed of new text, as SVG."""
    _draw(tradeoff, to, "decode (tokens/s)", lambda row: row.decode.median, less=False)


def _draw(tradeoff: Tradeoff, to: Path, across: str, place: Callable[[FileRow], float], *, less: bool) -> None:
    """Draw files as points, KL upward, and name those of the front; `less`: whether a smaller place is better."""
    points = [(place(row), max(row.kl, LEAST)) for row in tradeoff.rows]
    with style.context("default"):
        figure = Figure(figsize=(6, 3), layout="constrained")
        axis = figure.subplots()
        axis.set(xlabel=across, ylabel="KL (nats/token)")
        axis.grid(visible=True, color="#dcdfe4")
        best = front([(x if less else -x, y) for x, y in points])
        axis.step(
            *zip(*(points[index] for index in best), strict=True),
            where="post" if less else "pre",
            color=FRONT,
            linewidth=1.2,
            zorder=1,
        )
        for number, model in enumerate(dict.fromkeys(row.model for row in tradeoff.rows)):
            own = [index for index, row in enumerate(tradeoff.rows) if row.model == model]
            colour = DENSE if model == "dense" else PRUNED
            mark: Any = {"color": colour, "marker": MARKS[number % len(MARKS)], "s": 34, "zorder": 3}
            axis.scatter(*zip(*(points[index] for index in own), strict=True), label=model, **mark)
            for index in set(own).intersection(best):
                axis.annotate(
                    tradeoff.rows[index].quantisation,
                    points[index],
                    xytext=(2, 5) if less else (2, -10),
                    textcoords="offset points",
                    rotation=40 if less else -40,
                    rotation_mode="anchor",
                    fontsize=7,
                    color=DENSE,
                )
        axis.set_yscale("log")
        axis.set_xscale("log")
        for each, subs in ((axis.yaxis, (1.0, 3.0)), (axis.xaxis, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))):
            each.set_major_locator(LogLocator(subs=subs, numticks=9))
            each.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
            each.set_minor_formatter(NullFormatter())
        axis.margins(x=0.1, y=0.12)
        axis.legend(loc="best")
        figure.savefig(to, metadata={"Date": None})
