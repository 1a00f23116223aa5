"""Scores of a model on labelled texts and pairs, and their differences from the dense model's with standard errors.

Means over texts or queries have the standard error of the paired differences. Scores of a whole set, such as an area
under a curve, have that of paired bootstrap samples of the set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from darwinlm.steps.evaluate.model_figures import TaskScore

Numbers = NDArray[np.float64]
TOP = 10
"""Ranks that count in nDCG@10 and MRR@10."""
SAMPLES, SEED = 200, 0
"""Bootstrap samples, and their seed."""


@dataclass(frozen=True)
class Labelled:
    """Predictions of a model for labelled texts.

    Attributes:
        labels: Label of each text, [i].
        scores: What texts are ranked by, [i]; empty if a label is chosen from several.
        chosen: Label that the model chooses, [i]; empty if it gives one number.
    """

    labels: Numbers
    scores: Numbers
    chosen: Numbers

    def only(self, rows: NDArray[np.int64]) -> Labelled:
        """Some of the texts."""
        scores = self.scores[rows] if len(self.scores) else self.scores
        return Labelled(self.labels[rows], scores, self.chosen[rows] if len(self.chosen) else self.chosen)


@dataclass(frozen=True)
class Ranked:
    """Scores of the texts of each query, with their labels, [texts of the query] each."""

    labels: Sequence[Numbers]
    scores: Sequence[Numbers]


def ndcg(ranked: Ranked) -> Numbers:
    """Normalised discounted cumulative gain of the first ten texts, for each query."""
    from sklearn.metrics import ndcg_score

    pairs = zip(ranked.labels, ranked.scores, strict=True)
    values = [float(ndcg_score(labels[None], scores[None], k=TOP)) for labels, scores in pairs]
    return np.array(values, dtype=np.float64)


def reciprocal_rank(ranked: Ranked) -> Numbers:
    """One over the rank of the first relevant text, of each query; 0 if it isn't among the first ten."""
    values = []
    for labels, scores in zip(ranked.labels, ranked.scores, strict=True):
        order = np.argsort(-scores, kind="stable")[:TOP]
        relevant = np.flatnonzero(labels[order] > 0)
        values.append(1 / (relevant[0] + 1) if len(relevant) else 0.0)
    return np.array(values)


def correct(labelled: Labelled) -> Numbers:
    """Whether the chosen label is right, of each text."""
    right: Numbers = (labelled.chosen == labelled.labels).astype(np.float64)
    return right


def f1(count: int) -> Callable[[Labelled], float]:
    """F1 of label 1 of a model with `count` = 2 labels, or the mean over those that the texts have; NaN without any.

    A label that no text has doesn't count, even if a model chooses it, so that all models are scored on the same ones.
    """
    from sklearn.metrics import f1_score

    def score(labelled: Labelled) -> float:
        known = np.unique(labelled.labels)
        known = known[known == 1] if count == 2 else known
        if not len(known):
            return math.nan
        mean = f1_score(labelled.labels, labelled.chosen, labels=known, average="macro", zero_division=0)
        return float(mean)

    return score


def auc(labelled: Labelled) -> float:
    """Area under the ROC curve of two labels; NaN if there is only one in the texts."""
    from sklearn.metrics import roc_auc_score

    if len(np.unique(labelled.labels)) != 2:
        return math.nan
    return float(roc_auc_score(labelled.labels > labelled.labels.min(), labelled.scores))


def spearman(labelled: Labelled) -> float:
    """Rank correlation of scores and labels; NaN if either is constant."""
    return rank_correlation(labelled.labels, labelled.scores)


def rank_correlation(one: Numbers, other: Numbers) -> float:
    """Spearman's rank correlation; NaN if either is constant."""
    from scipy.stats import spearmanr

    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(spearmanr(one, other).statistic)


def mean_score(name: str, values: Numbers, dense: Numbers) -> TaskScore:
    """A mean over texts or queries, and its difference from the dense model's."""
    differences = values - dense
    error = float(differences.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return _finite(TaskScore(name, float(values.mean()), float(differences.mean()), error, len(values)))


def set_score(name: str, of: Callable[[Labelled], float], labelled: Labelled, dense: Labelled) -> TaskScore:
    """A score of a whole set of texts, and its difference from the dense model's."""
    count, draws = len(labelled.labels), np.random.default_rng(SEED)
    differences = []
    for _ in range(SAMPLES):
        rows = draws.integers(count, size=count)
        differences.append(of(labelled.only(rows)) - of(dense.only(rows)))
    known = np.array(differences)[np.isfinite(differences)]
    value = of(labelled)
    error = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return _finite(TaskScore(name, value, value - of(dense), error, count))


def _finite(score: TaskScore) -> TaskScore:
    """The score with None in place of what isn't defined for the texts."""
    values = (score.value, score.difference, score.error)
    value, difference, error = (number if number is not None and math.isfinite(number) else None for number in values)
    return TaskScore(score.name, value, difference, error, score.count)
