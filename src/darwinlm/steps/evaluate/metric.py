"""A metric is an object: its name, how it is measured and reduced, and the words and cells in which reports show it.

`@register` adds one. The page, the terminal, the card, sweeps, `darwinlm evaluate` and summary.json then have it.

Letters: n tokens, v vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from darwinlm.runtime.amounts import NOTHING
from darwinlm.runtime.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from darwinlm.steps.evaluate.predictions import Predictions

Value = int | float | None
"""A figure; None where it wasn't measured."""
Values = Mapping[str, Value]
"""Figures of one model, by the names of the metrics."""


@dataclass(frozen=True)
class Tile:
    """A large figure at the top of the page, with its label above and what it is compared with below."""

    label: str
    figure: str
    compared: str


class Metric:
    """A figure of a model.

    Attributes:
        name: Name in summary.json.
        heading: Heading of its column in tables.
        column: Whether it has a column in the comparison of models; else it is in summary.json and in some sentences.
        smaller_is_better: Which direction is better; None if neither is.
        version: Number that the author raises when the metric gives other values.
    """

    name: str
    heading: str
    column: bool = True
    smaller_is_better: bool | None = None
    version: int = 1

    def words(self, value: Value) -> str:
        """A value for people; a dash for None."""
        return NOTHING if value is None else f"{value:.4g}"

    def cell(self, value: Value, dense: Value) -> str:
        """A value in a table of models, where the dense model has `dense`; that is None in its own row."""
        del dense
        return self.words(value)

    def tile(self, saved: Values, dense: Values, uniform: Values | None) -> Tile | None:
        """The large figure at the top of the page; None for metrics that have none there."""
        del saved, dense, uniform
        return None


@dataclass(frozen=True)
class ModelSize:
    """Numbers of parameters, in all and in the blocks, and bytes of a stored weight."""

    params: int
    block_params: int
    weight_bytes: int


class SizeMetric(Metric, ABC):
    """A size of the saved model."""

    @abstractmethod
    def of(self, size: ModelSize) -> int:
        """The size."""


class TokenMetric(Metric, ABC):
    """A mean over the tokens of a text.

    Attributes:
        next_token: Whether it judges the prediction of the next token; the last token of a sequence then doesn't count.
        compares: Whether it compares a model with the dense one, so that it says nothing without that one.
    """

    next_token: bool = True
    compares: bool = True

    @abstractmethod
    def of(self, predictions: Predictions) -> Tensor:
        """The figure of each token, [n]."""

    def reduced(self, mean: float) -> float:
        """The model's figure, from the mean over all tokens."""
        return mean

    def precise(self, value: Value) -> str:
        """A value for `darwinlm evaluate`, with more digits than in a report."""
        return self.words(value)


@dataclass(frozen=True)
class TimedRounds:
    """Tokens per second in each timed round: of a prompt in one forward pass, and of greedy decoding after it.

    A model that doesn't write has no rates of decoding.
    """

    prompts: tuple[float, ...]
    decodes: tuple[float, ...]


class SpeedMetric(Metric, ABC):
    """A figure of the timed rounds of a whole model."""

    @abstractmethod
    def of(self, rounds: TimedRounds) -> float | None:
        """The figure."""


AnyMetric = TypeVar("AnyMetric", bound=Metric)


class Metrics(Registry[Metric]):
    """The registry of metrics, which holds an instance of each."""

    def _checked(self, entry: object) -> Metric:
        if not (isinstance(entry, type) and issubclass(entry, Metric)):
            raise TypeError(f"a metric is a subclass of Metric, and {entry!r} isn't")
        return entry()

    def all(self) -> list[Metric]:
        """All metrics, in the order of the columns of tables."""
        return [self.find(name) for name in self]


METRICS = Metrics("metric")


def register(kind: type[AnyMetric]) -> type[AnyMetric]:
    """Add a metric under its name. Raises RecipeError if one of the package has that name."""
    return METRICS.register(kind.name)(kind)


def size_metrics() -> list[SizeMetric]:
    """The metrics of sizes."""
    return [metric for metric in METRICS.all() if isinstance(metric, SizeMetric)]


def token_metrics(*, comparing: bool = False) -> list[TokenMetric]:
    """The metrics of tokens; only those that compare a model with the dense one, if `comparing`."""
    metrics = [metric for metric in METRICS.all() if isinstance(metric, TokenMetric)]
    return [metric for metric in metrics if metric.compares or not comparing]


def speed_metrics() -> list[SpeedMetric]:
    """The metrics of speed."""
    return [metric for metric in METRICS.all() if isinstance(metric, SpeedMetric)]


class _Unknown(Metric):
    """A metric that is registered where a run was made and not here."""

    def __init__(self, name: str) -> None:
        self.name = self.heading = name


def columns(models: Iterable[Values]) -> list[Metric]:
    """The metrics that tables of some models show; one that isn't registered here goes by its name."""
    names = dict.fromkeys(name for values in models for name in values)
    known = [metric for metric in METRICS.all() if metric.column and metric.name in names]
    return [*known, *(_Unknown(name) for name in names if name not in METRICS)]


def tiles(saved: Values, dense: Values, uniform: Values | None) -> list[Tile]:
    """The large figures of all metrics that have one."""
    return [tile for metric in METRICS.all() if (tile := metric.tile(saved, dense, uniform)) is not None]


def directions(metrics: Sequence[Metric]) -> str:
    """Which direction is better, in a sentence; empty if no metric has a better one."""
    clauses = []
    for smaller, words in ((True, "lower"), (False, "higher")):
        names = [metric.heading.partition(",")[0] for metric in metrics if metric.smaller_is_better is smaller]
        if names:
            listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
            clauses.append(f"{words} is better for {listed}")
    sentence = "; ".join(clauses)
    return f"{sentence[:1].upper()}{sentence[1:]}." if sentence else ""


def measured_by(metrics: Iterable[Metric]) -> dict[str, int]:
    """What identifies metrics in the key of a step that measures them: their versions by name."""
    return {metric.name: metric.version for metric in metrics}
