"""The metrics of a run, in the order of the columns of its tables."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from darwinlm.runtime import amounts
from darwinlm.steps.evaluate.metric import (
    Metric,
    ModelSize,
    SizeMetric,
    SpeedMetric,
    Tile,
    TimedRounds,
    TokenMetric,
    Value,
    Values,
    register,
    speed_metrics,
)

if TYPE_CHECKING:
    from torch import Tensor

    from darwinlm.steps.evaluate.predictions import Predictions

LARGEST_EXPONENT = 700.0
"""Largest mean loss whose exponential is computed, without overflow."""
NOISE = 0.1
"""Least difference of two speeds, as a share, that isn't noise."""


class _ParameterCount(SizeMetric):
    """A number of parameters."""

    def words(self, value: Value) -> str:
        """A count."""
        return amounts.count(value)


@register
class Params(_ParameterCount):
    """Parameters; a tied embedding counts once."""

    name, heading = "params", "params"

    def of(self, size: ModelSize) -> int:
        """The number of parameters."""
        return size.params


@register
class BlockParams(_ParameterCount):
    """Parameters in the blocks, which are what is pruned."""

    name, heading = "block_params", "block params"

    def of(self, size: ModelSize) -> int:
        """The number of parameters in the blocks."""
        return size.block_params

    def cell(self, value: Value, dense: Value) -> str:
        """A count, and the share of the dense model's that is kept."""
        return self.words(value) if dense is None else f"{self.words(value)} ({amounts.percent(value, dense)})"

    def tile(self, saved: Values, dense: Values, uniform: Values | None) -> Tile | None:
        """The share that is kept."""
        del uniform
        params, dense_params = saved[self.name], dense[self.name]
        assert dense_params is not None, "every model has a size"
        compared = f"{self.words(params)} of {self.words(dense_params)} kept"
        return Tile("block parameters", amounts.percent(params, dense_params), compared)


@register
class Bytes(SizeMetric):
    """Bytes of the weights in the element type of the saved model."""

    name, heading = "bytes", "weights"

    def of(self, size: ModelSize) -> int:
        """The bytes."""
        return size.params * size.weight_bytes

    def words(self, value: Value) -> str:
        """Bytes in decimal units."""
        return amounts.size(value)

    def tile(self, saved: Values, dense: Values, uniform: Values | None) -> Tile | None:
        """The bytes, compared with the dense model's."""
        del uniform
        return Tile("weights", self.words(saved[self.name]), f"dense {self.words(dense[self.name])}")


@register
class Perplexity(TokenMetric):
    """Exponential of the mean cross-entropy of a token, given the earlier ones in its sequence."""

    name, heading = "perplexity", "perplexity"
    smaller_is_better = True
    compares = False

    def of(self, predictions: Predictions) -> Tensor:
        """Cross-entropy of each token in nats, [n]."""
        return predictions.losses

    def reduced(self, mean: float) -> float:
        """The exponential of the mean."""
        return math.exp(min(mean, LARGEST_EXPONENT))

    def words(self, value: Value) -> str:
        """A perplexity in three digits."""
        return amounts.perplexity(value)

    def precise(self, value: Value) -> str:
        """A perplexity in four digits."""
        return amounts.NOTHING if value is None else f"{value:.4g}"

    def tile(self, saved: Values, dense: Values, uniform: Values | None) -> Tile | None:
        """The perplexity, compared with those of the dense and the uniform model."""
        if self.name not in saved:
            return None
        compared = f"dense {self.words(dense.get(self.name))}"
        if uniform is not None:
            compared += f", uniform {self.words(uniform.get(self.name))}"
        return Tile("perplexity", self.words(saved.get(self.name)), compared)


@register
class Divergence(TokenMetric):
    """Mean KL(dense ‖ model) in nats per token."""

    name, heading = "kl", "KL, nats per token"
    smaller_is_better = True
    next_token = False

    def of(self, predictions: Predictions) -> Tensor:
        """KL of each token, [n]."""
        return predictions.divergences

    def reduced(self, mean: float) -> float:
        """The mean; rounding can make that of equal models negative."""
        return max(mean, 0.0)

    def words(self, value: Value) -> str:
        """A KL with three decimals."""
        return amounts.nats(value)

    def precise(self, value: Value) -> str:
        """A KL with four decimals."""
        return amounts.NOTHING if value is None else f"{value:.4f}"


@register
class Agreement(TokenMetric):
    """Share of tokens at which both models rank the same token first.

    It is the share of a draft's greedy tokens that the dense model accepts.
    """

    name, heading = "agreement", "same next token"
    column = False
    smaller_is_better = False

    def of(self, predictions: Predictions) -> Tensor:
        """Whether both models rank the same token first, [n]."""
        return predictions.most_likely == predictions.dense.most_likely

    def words(self, value: Value) -> str:
        """A share in percent."""
        return amounts.percent(value)

    def precise(self, value: Value) -> str:
        """A share in percent with two decimals."""
        return amounts.NOTHING if value is None else f"{100 * value:.2f} %"


class _Rate(SpeedMetric):
    """Tokens per second: the median of the rounds.

    Attributes:
        noun: The speed in sentences.
    """

    smaller_is_better = False
    noun: str

    def words(self, value: Value) -> str:
        """Tokens per second."""
        return amounts.rate(value)

    def cell(self, value: Value, dense: Value) -> str:
        """Tokens per second, and how many times the dense model's."""
        times = amounts.factor(value, dense)
        return self.words(value) + (f" (×{times})" if times else "")

    def tile(self, saved: Values, dense: Values, uniform: Values | None) -> Tile | None:
        """The factor, if it isn't noise."""
        del uniform
        if not differs(saved, dense, self):
            return None
        rate, before = saved[self.name], dense[self.name]
        return Tile(
            self.noun,
            f"×{amounts.factor(rate, before)}",
            f"{self.words(rate)} tokens/s, dense {self.words(before)}",
        )


@register
class PromptRate(_Rate):
    """Tokens per second of a prompt."""

    name, heading, noun = "tokens_per_second", "prompt tokens/s", "prompt speed"

    def of(self, rounds: TimedRounds) -> float:
        """The median."""
        return statistics.median(rounds.prompts)


@register
class DecodeRate(_Rate):
    """Tokens per second of new text."""

    name, heading, noun = "decode_tokens_per_second", "decode tokens/s", "decode speed"

    def of(self, rounds: TimedRounds) -> float | None:
        """The median; None for a model that doesn't write."""
        return statistics.median(rounds.decodes) if rounds.decodes else None


@register
class SpeedSpread(SpeedMetric):
    """By how much the fastest round exceeds the slowest, as a share of the median, the larger of both speeds."""

    name, heading = "speed_spread", "spread of the speeds"
    column = False

    def of(self, rounds: TimedRounds) -> float | None:
        """The spread; None after a single round."""
        if len(rounds.prompts) < 2:
            return None
        timed = [rates for rates in (rounds.prompts, rounds.decodes) if rates]
        return max((max(rates) - min(rates)) / statistics.median(rates) for rates in timed)


def differs(saved: Values, dense: Values, metric: Metric) -> bool:
    """Whether two speeds differ by at least a tenth, and by more than their rounds do; False if timed only once."""
    spreads = [values.get(SpeedSpread.name) for values in (saved, dense)]
    rate, before = saved.get(metric.name), dense.get(metric.name)
    if None in spreads or not rate or not before:
        return False
    return abs(rate / before - 1) > max(NOISE, sum(spread for spread in spreads if spread is not None))


def reference(metric: Metric, own: Values, dense: Values) -> Value:
    """The dense model's value, with which a cell compares a model's; None for a speed that isn't told apart from it."""
    if isinstance(metric, _Rate) and not differs(own, dense, metric):
        return None
    return dense.get(metric.name)


def same_speed(own: Values, dense: Values) -> bool:
    """Whether some speed of a model was measured, and isn't told apart from the dense model's."""
    return any(
        own.get(metric.name) is not None and reference(metric, own, dense) is None
        for metric in speed_metrics()
        if isinstance(metric, _Rate)
    )


def speed_beside(metric: Metric, saved: Values, dense: Values | None) -> str | None:
    """A speed as a factor of the dense model's, which was timed in turn with it, and the spread of the rounds.

    None for other metrics. Without a dense model, it is that of the dense model itself.
    """
    if not isinstance(metric, _Rate):
        return None
    if dense is None:
        return "×1"
    times = amounts.factor(saved.get(metric.name), dense.get(metric.name))
    if not times:
        return amounts.NOTHING
    spreads = [values.get(SpeedSpread.name) for values in (saved, dense)]
    known = [spread for spread in spreads if spread is not None]
    return f"×{times} ± {amounts.percent(sum(known))}" if len(known) == len(spreads) else f"×{times}, timed once"


def speed_heading(metric: Metric) -> str:
    """Heading of a column whose speeds are factors."""
    return metric.noun if isinstance(metric, _Rate) else metric.heading


def speed_gains(saved: Values, dense: Values) -> list[str]:
    """How much faster a model is than the dense one, by speed that differs: `prompt speed ×2.1`."""
    return [
        f"{metric.noun} ×{amounts.factor(saved[metric.name], dense[metric.name])}"
        for metric in speed_metrics()
        if isinstance(metric, _Rate) and differs(saved, dense, metric)
    ]
