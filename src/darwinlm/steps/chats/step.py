"""Chats: how close the smaller models stay to the dense one's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.step import Cost, Step, Task
from darwinlm.steps.chats.chat_figures import ChatFigures
from darwinlm.steps.evaluate.metric import TokenMetric, measured_by, token_metrics
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.evaluate.measured_models import Models
    from darwinlm.steps.workload import Workload

FIGURES = "chats.json"
LENGTH = 512
"""Maximum number of tokens of a chat."""
CHATS_AT_ONCE = 16
"""Chats that are written at once."""


@dataclass(frozen=True, eq=False)
class Chats(Step[ChatFigures]):
    """Figures of chats on new answers, which no text of the run holds.

    Attributes:
        tokens: Number of tokens of answers.
    """

    name = "chats"
    version = 4
    writes = "figures of chats, if the model is a chat model"
    Figures = ChatFigures
    arithmetic = True
    together = True

    dense: Checkpoint
    models: Models
    tokens: int

    @property
    def extensions(self) -> tuple[TokenMetric, ...]:
        """The metrics that compare two models."""
        return tuple(token_metrics(comparing=True))

    def key(self, task: Task) -> Mapping[str, object]:
        """Versions of the metrics."""
        return {"metrics": measured_by(self.extensions)}

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

    def figures(self, task: Task, result: ChatFigures) -> ChatFigures:
        """The figures."""
        return result

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Answers of the dense model, read by it and two smaller ones; None for short runs, and models that read."""
        from darwinlm.model.objective.chosen import objective_of
        from darwinlm.steps.workload import ALONE, TOGETHER, largest

        sizes, tokens = load.sizes, load.settings(TextSettings).answer_tokens
        if not tokens or objective_of(sizes.checkpoint).reads:
            return None
        work = sizes.operations(2 * tokens, 1 + 2 * sizes.kept, heads=3)
        batches = -(-tokens // (CHATS_AT_ONCE * LENGTH // 2))  # of chats that use half of their length
        step = ALONE + TOGETHER * CHATS_AT_ONCE / 2  # reads all weights; on average, half of the chats go on
        alone = sizes.operations(batches * LENGTH * step, heads=1)
        fits = load.on_cpu or sizes.params * sizes.size <= load.memory / 2  # else none are written
        writing = load.writing(CHATS_AT_ONCE, LENGTH) if fits else {}
        mapped = load.mapped(sizes.params, sizes.stored)
        blocks = (1 + 2 * sizes.kept) * sizes.blocks
        passes = load.passes(2 * tokens, 1 + 2 * sizes.kept, heads=3) + load.owning(blocks)
        written = load.written(batches * LENGTH * CHATS_AT_ONCE / 2, CHATS_AT_ONCE / 2)
        parts = {"passes": passes, **load.exchange(blocks * sizes.size, 3)}
        if fits:
            parts |= {"loading": load.loading(sizes.params), "generation": written}
        held = largest(writing, load.reading(2 * tokens, 3))
        return Cost(work + alone, held, scratch=mapped, parts=parts, alone=alone)
