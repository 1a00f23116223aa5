"""Chats: how close the smaller models stay to the dense one's own answers."""

from __future__ import annotations

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.figures import AnswerFigures, ChatFigures
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.chats.answers import measure_answers, write_answers
from darwinlm.steps.evaluate.step import Models
from darwinlm.steps.own_text.script import chat_parts
from darwinlm.steps.source.step import load_whole, why_not_whole

FIGURES = "chats.json"


def _measure(task: Task, dense: Checkpoint, models: Models) -> None:
    """Compare the uniform and the last model with the dense one, on answers that it writes now."""
    context, found = task.context, dict[str, AnswerFigures]()
    parts = chat_parts(dense.tokenizer())
    params = sum(each.numel() for each in dense.outline.parameters())
    if not (reason := parts if isinstance(parts, str) else why_not_whole(task, params)):
        chosen = [name for name in models.readers if name in ("uniform", "before", [*models.readers][-1])]
        written = write_answers(load_whole(task, dense), dense.tokenizer(), task.recipe.text.answer_tokens)
        if isinstance(written, str):
            reason = f"dense writes no chats: {written}"
        else:
            reader, *others = (models.readers[name](written.tokens) for name in ("dense", *chosen))
            found = measure_answers(
                reader,
                dict(zip(chosen, others, strict=True)),
                written,
                batch_tokens=context.batch_tokens,
                memory=HiddenMemory(task.folder),
            )
    if reason:
        context.reporter.say(f"no figures on chats: {reason}")
    parallel.in_main(write_json, task.folder / FIGURES, ChatFigures(answers=found).as_json())


CHATS = Stage(
    "chats",
    _measure,
    lambda task: read_as(task.folder / FIGURES, ChatFigures),
    version=3,
    writes="figures of chats, if the model is a chat model",
    key=lambda task: {"tokens": task.recipe.text.answer_tokens},
    arithmetic=True,
    together=True,
)
"""Figures of chats on new answers, which no text of the run holds."""
