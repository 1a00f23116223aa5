"""Figures of the recovery, the words that show them, and the record of a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, TypedDict

from darwinlm.runtime.amounts import NATS, count, duration, nats, perplexity, three_digits
from darwinlm.runtime.charts import Axis, Chart, Curve, Picture, counted
from darwinlm.runtime.figures import Extract, StepFigures
from darwinlm.runtime.published import short_source


class TrainingPoint(Extract):
    """A line of the training's log: the loss, or what held-out text says."""

    tokens: int
    loss: float | None = None
    eval_kl: float | None = None
    eval_perplexity: float | None = None


class RecoveryFigures(StepFigures):
    """The training after pruning, on text from `source`.

    `kept` is `before` if training did not improve the held-out loss.
    """

    heading: ClassVar[str] = "Recovery"
    lasting: ClassVar[bool] = False

    source: str | None
    steps: int
    tokens: int
    seconds: float
    processes: int = 1
    sharded: bool = False
    kept: Literal["trained", "before"] = "trained"
    log: tuple[TrainingPoint, ...] = ()
    unit: str = NATS

    @property
    def label(self) -> str:
        """The model went through recovery."""
        return "recovery"

    def account(self) -> tuple[str, ...]:
        """The amount of training, and what held-out text says of it."""
        trained = (
            f"The model was trained on {self.tokens:,} tokens of {short_source(self.source)} in {self.steps:,} steps, "
            f"{duration(self.seconds)}."
        )
        if self.kept == "before":
            trained += " The loss on held-out text did not fall, so the weights from before were kept."
        named, show = self._distance
        points = [
            f"{show(point.eval_kl)} after {count(point.tokens)} tokens"
            for point in self.log
            if point.eval_kl is not None
        ]
        return (trained, f"{named} on held-out text: {', '.join(points)}.") if points else (trained,)

    @property
    def _distance(self) -> tuple[str, Callable[[float | None], str]]:
        """Name of the distance to the dense model, and what shows it: of a language model it is the KL."""
        if self.unit == NATS:
            return "KL", nats
        return f"{self.unit[:1].upper()}{self.unit[1:]}", three_digits

    def pictures(self) -> tuple[Picture, ...]:
        """The loss of the training, and what held-out text says of the model, by the tokens read so far."""
        losses = [(point.tokens, point.loss) for point in self.log if point.loss is not None]
        kls = [(point.tokens, point.eval_kl) for point in self.log if point.eval_kl is not None]
        perplexities = [
            (point.tokens, point.eval_perplexity) for point in self.log if point.eval_perplexity is not None
        ]
        named, show = self._distance
        own = "KL, nats per token" if self.unit == NATS else self.unit
        charts = [
            _by_tokens("Loss of the training", Axis("loss, nats per token" if self.unit == NATS else own, show), losses)
        ]
        if kls:
            charts.append(_by_tokens(f"{named} on held-out text", Axis(own, show), kls))
        else:
            charts.append(_by_tokens("Perplexity on held-out text", Axis("perplexity", perplexity), perplexities))
        known = tuple(chart for chart in charts if chart is not None)
        return (Picture("training", known),) if known else ()

    def card(self) -> str:
        """The amount of training, unless nothing was kept of it."""
        if self.kept == "before":
            return ""
        return f"The smaller model was then trained on {self.tokens:,} tokens of {short_source(self.source)}."

    def expectation(self) -> str:
        """What training gave back, and what it didn't."""
        if self.kept == "before":
            return (
                f"Training on {self.tokens:,} tokens after pruning did not help on held-out text, so the weights from "
                "before it were kept. Abilities that pruning removed, facts above all, are gone."
            )
        return (
            f"It was trained on {self.tokens:,} tokens after pruning. Facts and other abilities that this text does "
            "not teach have not returned."
        )


def _by_tokens(title: str, axis: Axis, points: Sequence[tuple[int, float]]) -> Chart | None:
    """A curve over the tokens of the training; None with fewer than two points."""
    if len(points) < 2:
        return None
    xs, ys = zip(*((float(tokens), value) for tokens, value in sorted(points)), strict=True)
    what = axis.label.partition(",")[0]
    tips = tuple(f"after {count(x)} tokens: {what} {axis.words(y)}" for x, y in zip(xs, ys, strict=True))
    return Chart(title, counted("training tokens"), axis, (Curve("", xs, ys, tips),))


class TrainingRecord(TypedDict, total=False):
    """Record of a training.

    Attributes:
        seconds: Time of all steps, also of processes that were interrupted.
        processes: Number of processes that shared the work.
        sharded: Whether they shared the weights.
        kept: Which weights were kept: the trained ones, or those before training.
        log: Losses, and figures on held-out text, by step.
    """

    steps: int
    tokens: int
    seconds: float
    processes: int
    sharded: bool
    kept: Literal["trained", "before"]
    log: list[dict[str, int | float]]
