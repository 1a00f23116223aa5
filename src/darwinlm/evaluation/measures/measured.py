"""A model measured beside the dense one: scores, their paired difference, and how far the items can be trusted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.evaluation.measures.paired import NOTABLE, Paired
from darwinlm.evaluation.measures.score_store import Scored, ScoreStore
from darwinlm.runtime.errors import MeasureError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.tables import Table


@dataclass(frozen=True)
class MeasuredScore:
    """Scores of a model on a measure, with those of the dense one if it is compared."""

    name: str
    scores: Sequence[float]
    dense: Sequence[float] | None = None

    def check(self) -> None:
        """Refuse scores of different items. Raises MeasureError."""
        if self.dense is not None and len(self.scores) != len(self.dense):
            raise MeasureError(
                f"{self.name} gave {len(self.dense)} scores for the dense model and {len(self.scores)} for another "
                "one: every model must get the same items in the same order"
            )

    @property
    def paired(self) -> Paired:
        """The comparison with the dense model; with itself, if there is none."""
        return Paired(self.dense if self.dense is not None else self.scores, self.scores)

    def as_json(self) -> JsonObject:
        """Plain values, with the score of each item."""
        paired = self.paired
        values: JsonObject = {"measure": self.name, "items": paired.n, "score": paired.small_mean}
        values["stderr"] = stderr_of(self.scores)
        if self.dense is not None:
            low, high = paired.interval
            values |= {
                "dense_score": paired.dense_mean,
                "difference": paired.difference,
                "interval": [low, high],
                "mcnemar_p": paired.p_value,
                "kept": paired.kept,
                "items_for_2_percent": paired.items_for(NOTABLE),
                "dense_scores": list(self.dense),
            }
        return values | {"scores": list(self.scores)}


def measure_model(
    measures: Sequence[Measure], model: Scored, dense: Scored | None, store: ScoreStore
) -> list[MeasuredScore]:
    """Score a model, after the dense one if there is one, of which one is loaded at a time.

    Raises MeasureError if a measure fails, or gives the models different numbers of items.
    """
    expected = [None] * len(measures) if dense is None else scores_of(dense, measures, store)
    measured = []
    for measure, scores, of_dense in zip(measures, scores_of(model, measures, store), expected, strict=True):
        measured.append(MeasuredScore(measure.name, scores, of_dense))
        measured[-1].check()
    return measured


def scores_of(model: Scored, measures: Sequence[Measure], store: ScoreStore) -> list[list[float]]:
    """Scores of a model on each measure. Raises MeasureError."""
    values = []
    try:
        for measure in measures:
            values.append(store.scores(model, measure))
            if measure.changes_model:
                model.release()
    finally:
        model.release()
    return values


def score_table(measured: Sequence[MeasuredScore]) -> Table:
    """A row for each measure, with remarks."""
    if all(each.dense is None for each in measured):
        rows = [
            (each.name, str(len(each.scores)), percent(each.paired.small_mean), percent(stderr_of(each.scores)))
            for each in measured
        ]
        return Table(("measure", "items", "score, %", "standard error"), rows)
    compared: list[tuple[str, ...]] = []
    for each in measured:
        paired = each.paired
        low, high = paired.interval
        compared.append(
            (
                each.name,
                str(paired.n),
                percent(paired.dense_mean),
                percent(paired.small_mean),
                f"{100 * paired.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                "-" if paired.kept is None else percent(paired.kept),
            )
        )
    headings = ("measure", "items", "dense, %", "score, %", "difference (95 % interval)", "kept, %")
    return Table(headings, compared, list(_remarks(measured)))


def _remarks(measured: Sequence[MeasuredScore]) -> Iterator[str]:
    for each in measured:
        paired = each.paired
        if paired.p_value is not None and paired.d.any():
            yield f"{each.name}: McNemar p = {paired.p_value:.2g}"
        needed = paired.items_for(NOTABLE)
        if needed is None:
            yield f"{each.name}: the dense model scores {percent(paired.dense_mean)} %, so no share of it can be kept"
        elif needed > paired.n:
            yield f"{each.name}: {too_few(paired.n, needed, NOTABLE)}"


def too_few(items: int, needed: int, loss: float) -> str:
    """That so many items can't show a loss."""
    return f"{items:,} items can't show a loss of {100 * loss:g} %; about {needed:,} can"


def percent(value: float | None) -> str:
    """A score as a percentage."""
    return "-" if value is None else f"{100 * value:.1f}"


def stderr_of(scores: Sequence[float]) -> float | None:
    """Standard error of the mean; None for a single item."""
    return statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
