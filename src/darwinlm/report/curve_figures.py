"""Score against size: what a run measured with the user's own measures, in numbers and in words.

Points are plain series: whoever draws them takes `series`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from darwinlm.runtime.amounts import percent
from darwinlm.runtime.charts import Axis, Chart, Colour, Curve, Level, Mark, Picture
from darwinlm.runtime.figures import Figures, Passage
from darwinlm.runtime.tables import Table

DENSE, TRIED, EQUAL, CHOSEN = "dense", "tried", "equal layers", "chosen"
"""Kinds of points: the original model, sizes that were tried, the best model with equal layers, and the saved one."""


class ScoreFigures(Figures):
    """The score of a model on a measure.

    Attributes:
        value: Mean over the items; nats per token where the measure is the KL.
        stderr: Standard error of `value`; None for a single item.
        difference: Mean difference from the dense model on the same items, and its 95 % interval; None for that model.
        kept: Share of the dense model's score; None where that isn't positive, and for the KL.
    """

    value: float
    stderr: float | None = None
    difference: tuple[float, float, float] | None = None
    kept: float | None = None


class CurvePoint(Figures):
    """A model that was measured.

    Attributes:
        keep: Share of the block parameters that it has.
        params: All of its parameters.
        scores: Its scores, by the names of the measures.
        holds: Whether it keeps the bound; None without one.
    """

    kind: Literal["dense", "tried", "equal layers", "chosen"]
    keep: float
    params: int
    scores: dict[str, ScoreFigures]
    holds: bool | None = None


class CurveFigures(Figures):
    """Scores of several sizes.

    Attributes:
        within: The bound as the user wrote it; empty without one.
        items: Number of items of each measure.
        bound: Worst score of each measure that keeps the bound; None without one.
        nats: Whether the scores are the KL in nats per token, of which less is better.
        points: The dense model first, then smaller ones, the largest first; the saved one among them is last.
        ended: Why the search for the size ended; empty without one.
        remarks: Further sentences, such as a warning that items are too few.
    """

    within: str = ""
    items: dict[str, int]
    nats: bool = False
    bound: dict[str, float] | None = None
    points: tuple[CurvePoint, ...]
    ended: str = ""
    remarks: tuple[str, ...] = ()

    @classmethod
    def joined(cls, curves: Sequence[CurveFigures]) -> CurveFigures:
        """The curve of a sweep, from those of its sizes, the largest first."""
        dense, *_ = curves[0].points
        sizes = [point for curve in curves for point in curve.points if point.kind in (EQUAL, CHOSEN)]
        return cls(items=curves[0].items, nats=curves[0].nats, points=(dense, *sizes), remarks=curves[-1].remarks)

    def series(self, measure: str) -> dict[str, list[tuple[float, float, float]]]:
        """Points of a measure for a picture, by kind: share of the block parameters, score, and standard error."""
        found: dict[str, list[tuple[float, float, float]]] = {}
        for point in self.points:
            score = point.scores[measure]
            found.setdefault(point.kind, []).append((point.keep, score.value, score.stderr or 0.0))
        return found

    @property
    def chosen(self) -> CurvePoint:
        """The saved model."""
        return self.points[-1]

    def picture(self) -> Picture:
        """A chart of each measure: the sizes with their standard errors, equal layers, and the bound."""
        return Picture("scores", tuple(map(self._chart, self.items)))

    def _chart(self, measure: str) -> Chart:
        scale, words = (1.0, "{:.3f}".format) if self.nats else (100.0, "{:.1f}".format)
        unit = "nats per token" if self.nats else "%"
        kinds: tuple[tuple[str, tuple[str, ...], Colour], ...] = (
            ("", (DENSE, TRIED, CHOSEN), "accent"),
            (EQUAL, (EQUAL,), "muted"),
        )
        marks: list[Mark] = []
        for name, kind, colour in kinds:
            points = sorted((point for point in self.points if point.kind in kind), key=lambda point: point.keep)
            scores = [point.scores[measure] for point in points]
            tips = tuple(
                f"{point.kind}, {percent(point.keep)}: {self._cell(score)} {unit}"
                for point, score in zip(points, scores, strict=True)
            )
            marks.append(
                Curve(
                    name,
                    tuple(100 * point.keep for point in points),
                    tuple(scale * score.value for score in scores),
                    tips,
                    colour,
                    joined=not name,
                    errors=tuple(scale * (score.stderr or 0.0) for score in scores),
                )
            )
        if self.bound is not None:
            marks.append(Level(scale * self.bound[measure], "bound"))
        better = "lower is better" if self.nats else "higher is better"
        return Chart(f"{measure} by size ({better})", Axis("block parameters kept, %"), Axis(unit, words), tuple(marks))

    def lines(self) -> list[tuple[str, str]]:
        """Lines for the terminal: the names and words of the saved model's scores."""
        return [("scores", words)] if (words := self._words()) else []

    def passage(self) -> Passage:
        """The section for the page, the card and the terminal."""
        rows = []
        for point in self.points:
            cells = [self._cell(point.scores[name]) for name in self.items]
            verdict = () if not self.within else ({True: "yes", False: "no", None: ""}[point.holds],)
            name = point.kind if point.kind != TRIED else f"tried at {100 * point.keep:.4g} %"
            rows.append((name, f"{100 * point.keep:.4g}", *cells, *verdict))
        unit = "nats" if self.nats else "%"
        names = [f"{name}, {unit} ({items:,} items)" for name, items in self.items.items()]
        headings = ("model", "kept, %", *names, *(("within the bound",) if self.within else ()))
        remarks = [words for words in (self.ended, *self.remarks) if words]
        return Passage(
            "Score against size" if not self.within else "Which size is safe?",
            self._words(),
            (Table(headings, rows, remarks, final=True),),
        )

    def _cell(self, score: ScoreFigures) -> str:
        scale, digits = (1.0, 4) if self.nats else (100.0, 1)
        text = f"{scale * score.value:.{digits}f}"
        return text if score.stderr is None else f"{text} ± {scale * score.stderr:.{digits}f}"

    def _words(self) -> str:
        """The sentences above the table."""
        sentences = []
        if self.within:
            bound = f"within {self.within}" + ("" if self.nats else " of the dense model's score")
            sentences.append(
                f"The model at {100 * self.chosen.keep:.4g} % of the block parameters is the smallest that was found "
                f"{bound}."
            )
            if self.chosen.holds is False:
                sentences.append("The saved model itself is a little outside of that bound.")
        for name, score in self.chosen.scores.items():
            if score.difference is None:
                continue
            mean, low, high = score.difference
            if self.nats:
                sentences.append(f"Its KL to the dense model is {score.value:.4f} nats per token.")
                continue
            kept = "" if score.kept is None else f"it keeps {100 * score.kept:.1f} % of the dense model's score, "
            sentences.append(
                f"On {name}, {kept}a difference of {100 * mean:+.1f} points (95 % interval {100 * low:+.1f} to "
                f"{100 * high:+.1f})."
            )
        return " ".join(sentences)
