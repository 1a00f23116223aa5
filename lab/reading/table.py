"""One table and one picture of a kind of reader: how well models rank against the documents that they read in a second.

    python -m lab.reading.table results/embedder --out runs/reading/embedder

The folder holds the figures of `lab.reading.quality`, one file for each model, and those of `lab.reading.speed`, whose
names begin with `speed`. A file is named METHOD-SHARE.json, or METHOD-SHARE+distilled.json after distillation, which
doesn't change a model's speed: `ours-50+distilled.json`. `dense.json` must be among them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context, style
from matplotlib.figure import Figure

from lab.pictures.results_plot import plain
from lab.reading.quality import MRR, NDCG, Mean, mean_of, ratio_of

DENSE, DISTILLED, SPEED = "dense", "+distilled", "speed"
COLOURS = {"ours": "#0d3f73", "equal": "#6a7079", "dropped": "#c0640f"}


class Row(NamedTuple):
    """A model's figures; `speeds`: documents per second and their ratio to the dense model's, by engine and batch."""

    name: str
    gain: Mean
    share: Mean
    reciprocal: Mean
    speeds: dict[str, tuple[float, float]]

    @property
    def method(self) -> str:
        """How it was made smaller."""
        return self.name.partition("-")[0]

    @property
    def distilled(self) -> bool:
        """Whether it was trained after that."""
        return self.name.endswith(DISTILLED)


def read_rows(folder: Path) -> list[Row]:
    """All models of a folder, the dense one first."""
    quality = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    speeds = {name: quality.pop(name) for name in sorted(quality) if name.startswith(SPEED)}
    if DENSE not in quality:
        raise SystemExit(f"{folder} has no {DENSE}.json: measure the dense model first")
    dense = quality[DENSE]
    rows = [
        Row(
            name,
            mean_of(found[NDCG]),
            ratio_of(found[NDCG], dense[NDCG]),
            mean_of(found[MRR]),
            _speeds_of(name.removesuffix(DISTILLED), speeds),
        )
        for name, found in quality.items()
    ]
    return sorted(rows, key=lambda row: (row.name != DENSE, row.method, row.distilled, -row.gain.mean))


def _speeds_of(name: str, speeds: dict[str, dict[str, dict[str, list[float]]]]) -> dict[str, tuple[float, float]]:
    """Median rate and median ratio to the dense model's of the same round."""
    found = {}
    for engine, batches in speeds.items():
        for batch, rates in batches.items():
            if name in rates:
                ratios = [one / other for one, other in zip(rates[name], rates[DENSE], strict=True)]
                place = f"{engine.removeprefix(SPEED).strip('-')}, {batch}"
                found[place] = (statistics.median(rates[name]), statistics.median(ratios))
    return found


def markdown(rows: list[Row]) -> str:
    """The table."""
    places = sorted({place for row in rows for place in row.speeds})
    columns = ["model", NDCG, "of the dense model's", MRR, *(f"documents/s: {place}" for place in places)]
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        read = [row.speeds.get(place) for place in places]
        rates = ["" if rate is None else f"{rate[0]:.1f} ({rate[1]:.2f}×)" for rate in read]
        share = f"{row.share.mean:.1%} ± {row.share.error:.1%}"
        lines.append([row.name, str(row.gain), share, str(row.reciprocal), *rates])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(rows: list[Row], place: str, to: Path) -> None:
    """Draw a line for each method: nDCG@10 against the speed in one engine at one batch; dashed before distillation."""
    with style.context("default"), rc_context({"svg.fonttype": "none", "svg.hashsalt": "darwinlm", "font.size": 9}):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axis = figure.subplots()
        dense = next(row for row in rows if row.name == DENSE)
        for method, colour in COLOURS.items():
            for trained in (False, True):
                shown = [row for row in rows if row.method == method and row.distilled == trained]
                points = [(row.speeds[place][1], *row.gain) for row in shown if place in row.speeds]
                if not points:
                    continue
                ratios, gains, errors = zip(*sorted([(1.0, *dense.gain), *points]), strict=True)
                axis.errorbar(
                    ratios,
                    gains,
                    yerr=errors,
                    color=colour,
                    linestyle="-" if trained else ":",
                    marker="o",
                    markersize=4,
                    capsize=2,
                    label=f"{method}{', distilled' if trained else ''}",
                )
        axis.set(xlabel=f"documents per second, of the dense model's ({place})", ylabel=NDCG)
        axis.legend(frameon=False)
        plain(axis)
        figure.savefig(to, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="table.md and picture.svg are written there")
    parser.add_argument("--speed", default="pytorch, batch 32", help="speed that the picture shows")
    given = parser.parse_args()
    rows = read_rows(given.results)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "table.md").write_text(markdown(rows), encoding="utf-8")
    draw(rows, given.speed, given.out / "picture.svg")
    print(markdown(rows))


if __name__ == "__main__":
    main()
