"""Chats: how close the smaller models stay to the dense one's own answers."""

from __future__ import annotations

from darwinlm.evaluation.answers import measure_answers, write_answers
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime import amounts, parallel
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.figures import ChatFigures
from darwinlm.runtime.memory import free_bytes
from darwinlm.stages.evaluate import Models
from darwinlm.stages.execution.stage import Stage, Task
from darwinlm.text.sampling.script import chat_parts

FIGURES = "chats.json"


def _measure(task: Task, teacher: Checkpoint, models: Models) -> None:
    """Compare the uniform and the last model with the dense one, on answers that it writes now."""
    context, found = task.context, ChatFigures(answers={}, instructions={})
    reason = _prevented(task, teacher)
    if not reason:
        last, ends = list(models.sources)[-1], working_time() + task.left(CHATS.name)
        dense = models.sources["dense"].load().to(context.device)
        tokens = task.recipe.text.answer_tokens
        written = write_answers(dense, teacher.tokenizer(), tokens, lambda: working_time() > ends)
        if isinstance(written, str):
            reason = f"dense writes no chats: {written}"
        else:
            for name in (each for each in models.sources if each in ("uniform", "before", last)):
                model = models.sources[name].load().to(context.device)
                found.answers[name] = measure_answers(dense, model, written, batch_tokens=context.batch_tokens)
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
    version=2,
    writes="figures of chats, if the model is a chat model",
    key=lambda task: {"tokens": task.recipe.text.answer_tokens},
    arithmetic=True,
    together=True,
)
"""Figures of chats on new answers, which no text of the run holds."""
