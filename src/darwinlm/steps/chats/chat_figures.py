"""Figures of chat models, and the words that show them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from darwinlm.runtime.amounts import percent
from darwinlm.runtime.figures import Figures, ModelNames, Passage, StepFigures
from darwinlm.runtime.tables import Table
from darwinlm.steps.evaluate.metric import token_metrics
from darwinlm.steps.evaluate.metrics import Agreement, Divergence


class AnswerFigures(Figures):
    """How close a model is to the dense one on the dense model's own answers to its own prompts.

    `metrics` are those that compare two models, by name.
    """

    tokens: int
    metrics: dict[str, float]

    @property
    def kl(self) -> float:
        """KL(dense ‖ model) in nats per token."""
        return self.metrics[Divergence.name]

    @property
    def agreement(self) -> float:
        """Share of tokens at which both models rank the same token first."""
        return self.metrics[Agreement.name]


class CodeFigures(Figures):
    """Shares of answers to coding tasks whose code parses as Python, and whose code is that of the dense model."""

    tasks: int
    parsed: float
    same: float


class ChatFigures(StepFigures):
    """What models do as chat models, by name: on answers of the dense one, and with coding tasks."""

    lasting: ClassVar[bool] = False

    answers: dict[str, AnswerFigures]
    code: dict[str, CodeFigures] = Field(default_factory=dict)

    def passages(self, name: ModelNames) -> tuple[Passage, ...]:
        """Tables of both, if there are figures."""
        tables = self.tables(name, final=True)
        return (Passage("Chats", tables=tables),) if tables else ()

    def tables(self, name: ModelNames = str, *, final: bool = False) -> tuple[Table, ...]:
        """Closeness to the dense model, and code.

        `name` gives a model's name for people; `final` stresses the last one.
        """
        tables = []
        if self.answers:
            metrics = token_metrics(comparing=True)
            rows = [
                (name(key), *(metric.words(model.metrics.get(metric.name)) for metric in metrics))
                for key, model in self.answers.items()
            ]
            tokens = next(iter(self.answers.values())).tokens
            remark = f"Measured on {tokens:,} tokens of new answers that the dense model wrote itself."
            headings = ("answers of the dense model", *(metric.heading for metric in metrics))
            tables.append(Table(headings, rows, [remark], final))
        if self.code:
            shares = [(name(key), percent(model.parsed), percent(model.same)) for key, model in self.code.items()]
            tasks = next(iter(self.code.values())).tasks
            remark = f"Code: {tasks} Python functions that the dense model writes; same: the same syntax tree."
            headings = ("coding answers", "parse as Python", "same as the dense model's")
            tables.append(Table(headings, shares, [remark], final))
        return tuple(tables)
