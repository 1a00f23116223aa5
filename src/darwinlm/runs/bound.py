"""A bound in quality, `2%` or `0.02 nats`, and what scores say about it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from darwinlm.evaluation.measures.measured import MeasuredScore, stderr_of, too_few
from darwinlm.evaluation.measures.paired import NOTABLE, Paired, items_to_see
from darwinlm.report.curve_figures import CurvePoint, ScoreFigures
from darwinlm.runtime.amounts import percent
from darwinlm.runtime.errors import MeasureError, RecipeError
from darwinlm.runtime.quantities import parse_share

KL = "KL"
"""Name of the KL to the dense model among measures."""

Scores = Mapping[str, Sequence[float]]
"""Scores of a model's items, by the names of the measures."""


@dataclass(frozen=True)
class Within:
    """A bound in quality.

    Attributes:
        value: Share of the dense model's score that may be lost, or nats per token.
        nats: Whether it bounds the KL to the dense model.
        words: The bound as the user wrote it.
    """

    value: float
    nats: bool
    words: str


def check_beside(within: Within, *, measured: bool, timed: bool) -> None:
    """Refuse a bound without what scores it, and a time limit beside it. Raises RecipeError."""
    if within.nats == measured:
        raise RecipeError(
            f"--within {within.words} bounds the KL to the dense model: leave --measure out"
            if within.nats
            else f"--within {within.words} is a share of a score: name what scores it, such as --measure sciq"
        )
    if timed:
        raise RecipeError(
            "--within runs a search for each size that it tries, and can't keep a time limit: leave it out"
        )


def parse_within(text: str) -> Within:
    """Read `2%`, `0.02` or `0.02 nats`. Raises RecipeError."""
    words = " ".join(text.split())
    match = re.fullmatch(r"(\S*?) ?nats?", words)
    try:
        value = float(match[1]) if match else parse_share(words)
    except ValueError:
        value = None
    most = 10.0 if match else 0.5
    if not isinstance(value, float) or not 0 < value <= most:
        raise RecipeError(
            f"--within {text}: give the share of the dense model's score that may be lost, up to 50%, such as 2%; or "
            "the KL to the dense model in nats per token, such as '0.02 nats'"
        )
    return Within(value, match is not None, words)


@dataclass(frozen=True)
class Judge:
    """Compares models with the dense one on all measures.

    Attributes:
        within: The bound; None without one.
        dense: Scores of the dense model.
    """

    within: Within | None
    dense: Scores

    def __post_init__(self) -> None:
        for name, scores in self.dense.items():
            if self.within is not None and not self.within.nats and sum(scores) <= 0:
                raise MeasureError(
                    f"{name}: the dense model scores {percent(sum(scores), len(scores))}, so no size can keep a share "
                    "of it: check the items, or use another measure"
                )

    @property
    def nats(self) -> bool:
        """Whether scores are the KL."""
        return self.within is not None and self.within.nats

    def check(self, scores: Scores) -> None:
        """Refuse another number of items. Raises MeasureError."""
        for name, expected in self.dense.items():
            MeasuredScore(name, scores[name], expected).check()

    def holds(self, scores: Scores) -> bool | None:
        """Whether a model keeps the bound on every measure; None without a bound."""
        if self.within is None:
            return None
        assert self.worst is not None, "there is a bound"
        means = {name: fmean(own) for name, own in scores.items()}
        if self.within.nats:
            return all(mean <= self.worst[name] for name, mean in means.items())
        return all(mean >= self.worst[name] for name, mean in means.items())

    @property
    def worst(self) -> dict[str, float] | None:
        """The worst score of each measure that keeps the bound; None without one."""
        if self.within is None:
            return None
        if self.within.nats:
            return dict.fromkeys(self.dense, self.within.value)
        return {name: (1 - self.within.value) * fmean(own) for name, own in self.dense.items()}

    def point(
        self, kind: Literal["dense", "tried", "equal layers", "chosen"], keep: float, params: int, scores: Scores
    ) -> CurvePoint:
        """A point of the curve."""
        figures = {name: self._figures(name, own, dense=kind == "dense") for name, own in scores.items()}
        return CurvePoint(kind=kind, keep=keep, params=params, scores=figures, holds=self.holds(scores))

    def _figures(self, name: str, own: Sequence[float], *, dense: bool) -> ScoreFigures:
        pair = Paired(self.dense[name], own)
        if dense:
            return ScoreFigures(value=pair.small_mean, stderr=stderr_of(own))
        kept = None if self.nats else pair.kept
        difference = (pair.difference, *pair.interval)
        return ScoreFigures(value=pair.small_mean, stderr=stderr_of(own), difference=difference, kept=kept)

    def tells_apart(self, first: Scores, second: Scores) -> bool:
        """Whether a measure shows a difference between two models at 95 % confidence."""
        return any(not low <= 0 <= high for low, high in (Paired(second[name], first[name]).interval for name in first))

    def needed(self, first: Scores, second: Scores) -> int | None:
        """Number of items of the most telling measure that would show the difference of two models; None if equal."""
        pairs = [Paired(second[name], first[name]) for name in first]
        counts = [items_to_see(abs(pair.difference), pair.spread) for pair in pairs if pair.difference]
        return min(counts, default=None)

    def remarks(self, scores: Scores) -> Iterator[str]:
        """Warnings: the dense model scores nothing, or items are too few to show the bound's loss, 2 % without one."""
        loss = NOTABLE if self.within is None else self.within.value
        for name, own in scores.items() if not self.nats else ():
            pair = Paired(self.dense[name], own)
            needed = pair.items_for(loss)
            if needed is None:
                yield f"{name}: the dense model scores {percent(pair.dense_mean)}, so no share of it can be kept."
            elif needed > pair.n:
                yield f"{name}: {too_few(pair.n, needed, loss)}."
