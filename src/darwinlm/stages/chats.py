"""Chats: how close the models stay to the dense one's own answers, and which instructions the saved one follows."""

from __future__ import annotations

from darwinlm.evaluation.chat_scores import measure_chats
from darwinlm.evaluation.instructions import NEW_TOKENS, RULES, TOPICS
from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.loading import FILES as TOKENIZER_FILES
from darwinlm.needs.need import Need
from darwinlm.runtime import amounts, parallel
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.figures import ChatFigures
from darwinlm.runtime.memory import free_bytes
from darwinlm.sampling.sampler import CPU_ROWS, GPU_ROWS
from darwinlm.sampling.script import chat_parts
from darwinlm.stages.evaluate import Models

FIGURES = "chats.json"
ANSWERED = len(TOPICS) * len(RULES) * (NEW_TOKENS + 32)
"""Tokens of all prompts with instructions and their answers, at most."""
CHAT = 1.3
"""Tokens of a chat for each of its answer's."""


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


def _need(need: Need) -> None:
    """The dense model writes answers, and all models read them; the dense and the saved one answer instructions.

    A model that is known by its configuration alone counts as a chat model.
    """
    sizes = need.sizes
    described = not any((sizes.checkpoint.folder / name).is_file() for name in TOKENIZER_FILES)
    if not described and isinstance(chat_parts(sizes.checkpoint.tokenizer()), str):
        return
    tokens, rows = sizes.recipe.evaluation.answer_tokens, CPU_ROWS if need.on_cpu else GPU_ROWS
    need.run(CHAT * tokens + ANSWERED, heads=1, batch=rows)
    need.run(ANSWERED, sizes.kept, heads=1, batch=rows)
    smaller = 2 + bool(sizes.recipe.refit.tokens) + bool(sizes.recipe.recovery.tokens)
    need.run(smaller * CHAT * tokens, 1 + sizes.kept, heads=2)
    need.tokens = (1 + 2 * smaller) * CHAT * tokens + 2 * ANSWERED
    if 2 * (weights := float(sizes.params * sizes.size)) <= need.room / 2:
        need.held = need.a_pass() | {"whole models": 2 * weights}
    need.files((sizes.params + smaller * sizes.small) * sizes.saved)


CHATS = Stage(
    "chats",
    lambda task: read_as(task.folder / FIGURES, ChatFigures),
    work=_measure,
    writes="figures of chats, if the model is a chat model",
    settings=("evaluation.answer_tokens",),
    arithmetic=True,
    together=True,
    wanted=lambda recipe: recipe.evaluation.answer_tokens,
    need=_need,
)
"""Figures of chats on new answers, which no text of the run holds."""
