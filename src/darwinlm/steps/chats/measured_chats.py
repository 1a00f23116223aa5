"""The smaller models of a run on answers that the dense one writes now, which no text of the run holds."""

from __future__ import annotations

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.runtime.step import Task
from darwinlm.steps.chats.answers import measure_answers, write_answers
from darwinlm.steps.chats.chat_figures import AnswerFigures
from darwinlm.steps.evaluate.measured_models import Models
from darwinlm.steps.evaluate.model_figures import BEFORE, DENSE, UNIFORM
from darwinlm.steps.own_text.script import chat_parts
from darwinlm.steps.source.whole_model import load_whole, why_not_whole


def measure_chats(task: Task, dense: Checkpoint, models: Models, tokens: int) -> dict[str, AnswerFigures] | str:
    """Compare the uniform and the last model with the dense one on so many tokens of its answers.

    Returns figures by model, or the reason why there are none.
    """
    context = task.context
    parts = chat_parts(dense.tokenizer())
    params = sum(parameter.numel() for parameter in dense.outline.parameters())
    if isinstance(parts, str):
        return parts
    if reason := why_not_whole(task, params):
        return reason
    last = [*models.models][-1]
    chosen = [name for name in models.models if name in (UNIFORM, BEFORE, last)]
    written = write_answers(load_whole(task, dense), dense.tokenizer(), tokens)
    if isinstance(written, str):
        return f"dense writes no chats: {written}"
    reader, *smaller = (models.models[name].read(written.tokens) for name in (DENSE, *chosen))
    return measure_answers(
        reader,
        dict(zip(chosen, smaller, strict=True)),
        written,
        batch_tokens=context.batch_tokens,
        memory=HiddenMemory(task.folder),
    )
