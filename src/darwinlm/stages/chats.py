"""Chats: how close the models stay to the dense one's own answers, and which instructions the saved one follows."""

from __future__ import annotations

import time

from darwinlm.evaluation.chat_scores import measure_chats
from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime import amounts, parallel
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.figures import ChatFigures
from darwinlm.runtime.memory import free_bytes
from darwinlm.stages.evaluate import Models
from darwinlm.text.sampling.script import chat_parts

FIGURES = "chats.json"


def _measure(task: Task, teacher: Checkpoint, models: Models) -> None:
    context, found = task.context, ChatFigures(answers={}, instructions={})
    sources = {str(name): source for name, source in models.sources.items()}
    if not (reason := _prevented(task, teacher)):
        try:
            found = measure_chats(
                sources,
                lambda name: sources[name].load().to(context.device),
                "dense",
                teacher.tokenizer(),
                tokens=task.recipe.evaluation.answer_tokens,
                ends=time.monotonic() + task.left(CHATS.name),
                batch_tokens=context.batch_tokens,
                asked=("dense", list(sources)[-1]),
            )
        except ModelError as error:
            reason = str(error)
    if reason:
        context.reporter.say(f"no figures on chats: {reason}")
    parallel.in_main(write_json, task.folder / FIGURES, found.as_json())


def _prevented(task: Task, teacher: Checkpoint) -> str:
    """Why the models can't write chats; empty if they can."""
    parts = chat_parts(teacher.tokenizer())
    if isinstance(parts, str):
        return parts
    context = task.context
    size = sum(each.numel() for each in teacher.skeleton().parameters()) * context.dtype.itemsize
    room = min(parallel.gather(free_bytes(context.device)))
    if 2 * size > room / 2:
        return f"two whole models need up to {amounts.size(2 * size)}, and {amounts.size(room / 2)} are for them"
    return ""


CHATS = Stage(
    "chats",
    _measure,
    lambda task: read_as(task.folder / FIGURES, ChatFigures),
    writes="figures of chats, if the model is a chat model",
    settings=("evaluation.answer_tokens",),
    arithmetic=True,
    together=True,
)
"""Figures of chats on new answers, which no text of the run holds."""
