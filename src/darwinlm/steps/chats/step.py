"""Chats: how close the smaller models stay to the dense one's own answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from darwinlm.runtime.figures import Figures
from darwinlm.runtime.step import Cost, Step, Task
from darwinlm.steps.text.step import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.evaluate.measured_models import Models
    from darwinlm.steps.workload import Workload

FIGURES = "chats.json"
LENGTH = 512
"""Maximum number of tokens of a chat."""
CHATS_AT_ONCE = 16
"""Chats that are written at once."""


class AnswerFigures(Figures):
    """How close a model is to the dense one on the dense model's own answers to its own prompts.

    KL(dense ‖ model) is in nats per token. `agreement` is the share of tokens at which both rank the same token first:
    of greedy tokens that the dense model accepts from a draft.
    """

    tokens: int
    kl: float
    agreement: float


class CodeFigures(Figures):
    """Shares of answers to coding tasks whose code parses as Python, and whose code is that of the dense model."""

    tasks: int
    parsed: float
    same: float


class ChatFigures(Figures):
    """What models do as chat models, by name: on answers of the dense one, and with coding tasks."""

    answers: dict[str, AnswerFigures]
    code: dict[str, CodeFigures] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Chats(Step[ChatFigures]):
    """Figures of chats on new answers, which no text of the run holds.

    Attributes:
        tokens: Number of tokens of answers.
    """

    name = "chats"
    version = 3
    writes = "figures of chats, if the model is a chat model"
    arithmetic = True
    together = True

    dense: Checkpoint
    models: Models
    tokens: int

    def work(self, task: Task) -> None:
        """Write answers, and compare the models on them."""
        from darwinlm.runtime import parallel
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.chats.measured_chats import measure_chats

        measured = measure_chats(task, self.dense, self.models, self.tokens)
        if isinstance(measured, str):
            task.context.reporter.say(f"no figures on chats: {measured}")
            measured = {}
        parallel.in_main(write_json, task.folder / FIGURES, ChatFigures(answers=measured).as_json())

    def read(self, task: Task) -> ChatFigures:
        """The figures."""
        from darwinlm.runtime.artifact import read_as

        return read_as(task.folder / FIGURES, ChatFigures)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Answers of the dense model, read by it and two smaller ones. None for short runs."""
        from darwinlm.steps.workload import TOGETHER, largest

        sizes, tokens = load.sizes, load.settings(TextSettings).answer_tokens
        if not tokens:
            return None
        work = sizes.operations(2 * tokens, 1 + 2 * sizes.kept, heads=3)
        work += sizes.operations(TOGETHER * tokens, heads=1)
        fits = load.on_cpu or sizes.params * sizes.size <= load.memory / 2  # else none are written
        writing = load.writing(CHATS_AT_ONCE, LENGTH) if fits else {}
        return Cost(work, largest(writing, load.reading(2 * tokens, 3)))
