"""Metrics of models that read texts one by one: the distance of their objective, and what it means.

`of` gets the outputs of a model and of the dense one for the same texts.

Letters: i texts, c outputs of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime import amounts
from darwinlm.steps.evaluate.metric import METRICS, Metric, Value, register

if TYPE_CHECKING:
    from torch import Tensor

    from darwinlm.model.objective.item_objective import ItemObjective


@dataclass(frozen=True)
class ItemOutputs:
    """Outputs of a model and of the dense one, [i, c] float32 each, and the distance of each text, [i]."""

    objective: ItemObjective
    outputs: Tensor
    dense: Tensor
    distances: Tensor


class ItemMetric(Metric, ABC):
    """A figure of a model's outputs for texts."""

    @abstractmethod
    def of(self, given: ItemOutputs) -> float | None:
        """The figure; None if it doesn't apply to such outputs."""


def item_metrics() -> list[ItemMetric]:
    """The metrics of outputs for texts."""
    return [metric for metric in METRICS.all() if isinstance(metric, ItemMetric)]


def kept_words(values: Mapping[str, float | None]) -> list[str]:
    """What is kept of the dense model's outputs, in words: the metrics of which more is better."""
    kept = [metric for metric in item_metrics() if not metric.smaller_is_better and metric.name in values]
    return [f"{metric.heading} {metric.words(values[metric.name])}" for metric in kept]


@register
class Distance(ItemMetric):
    """Mean distance of the objective, which all steps of a run minimise."""

    name, heading = "distance", "distance to dense"
    smaller_is_better = True

    def of(self, given: ItemOutputs) -> float:
        """The mean."""
        return max(float(given.distances.double().mean()), 0.0)

    def words(self, value: Value) -> str:
        """Three significant digits."""
        return amounts.NOTHING if value is None else f"{value:.3g}"


@register
class ScoreCorrelation(ItemMetric):
    """Spearman's correlation of scores with those of the dense model."""

    name, heading = "score_correlation", "rank correlation with dense"
    smaller_is_better = False

    def of(self, given: ItemOutputs) -> float | None:
        """The correlation of what texts are ranked by."""
        from darwinlm.model.objective.scores import Scores
        from darwinlm.steps.evaluate.task_scores import rank_correlation

        objective = given.objective
        if not isinstance(objective, Scores) or not objective.ranks(given.outputs.shape[-1]):
            return None
        own, dense = (objective.relevance(outputs).double().cpu().numpy() for outputs in (given.outputs, given.dense))
        value = rank_correlation(own, dense)
        return value if value == value else None  # noqa: PLR0124 - NaN

    def words(self, value: Value) -> str:
        """Three decimals."""
        return amounts.NOTHING if value is None else f"{value:.3f}"


@register
class SameLabel(ItemMetric):
    """Share of texts for which both models choose the same label."""

    name, heading = "same_label", "same label as dense"
    smaller_is_better = False

    def of(self, given: ItemOutputs) -> float | None:
        """The share."""
        from darwinlm.model.objective.scores import Scores

        if not isinstance(given.objective, Scores) or given.objective.labels != "one":
            return None
        return float((given.outputs.argmax(-1) == given.dense.argmax(-1)).double().mean())

    def words(self, value: Value) -> str:
        """A share in percent."""
        return amounts.percent(value)


@register
class Cosine(ItemMetric):
    """Mean cosine of embeddings and those of the dense model."""

    name, heading = "cosine", "cosine to dense"
    smaller_is_better = False

    def of(self, given: ItemOutputs) -> float | None:
        """The mean."""
        from torch.nn import functional

        from darwinlm.model.objective.embeddings import Embeddings

        if not isinstance(given.objective, Embeddings):
            return None
        return float(functional.cosine_similarity(given.outputs.double(), given.dense.double(), dim=-1).mean())

    def words(self, value: Value) -> str:
        """Three decimals."""
        return amounts.NOTHING if value is None else f"{value:.3f}"
