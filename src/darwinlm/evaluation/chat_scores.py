"""Figures of chat models: closeness to the dense model's own answers, instructions followed, and loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from darwinlm.evaluation.answers import measure_answers, write_answers
from darwinlm.evaluation.instructions import measure_instructions
from darwinlm.evaluation.summary import percent
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.figures import ChatFigures
from darwinlm.runtime.tables import Table


def measure_chats(
    names: Iterable[str],
    load: Callable[[str], Any],
    dense: str | None,
    tokenizer: Any,
    *,
    tokens: int,
    batch_tokens: int,
) -> ChatFigures:
    """Measure models, of which at most two are loaded at a time; processes share the work.

    Args:
        names: Names of the models.
        load: Gives a model by its name.
        dense: Name of the dense one, which writes at least `tokens` tokens of answers; None without one.
        tokenizer: That of all models.
        tokens: Answer tokens on which the others are compared with it.
        batch_tokens: Tokens in one pass.

    Raises ModelError if the models can't chat.
    """
    found = ChatFigures(answers={}, instructions={})
    original = None if dense is None else load(dense)
    written = None if original is None else write_answers(original, tokenizer, tokens)
    if isinstance(written, str):
        raise ModelError(f"{dense} writes no chats: {written}")
    for name in names:
        model = original if name == dense else load(name)
        if written is not None and name != dense:
            found.answers[name] = measure_answers(original, model, written, batch_tokens=batch_tokens)
        found.instructions[name] = measure_instructions(model, tokenizer)
    return found


def chat_tables(found: ChatFigures, name: Callable[[str], str] = str) -> Iterator[Table]:
    """Closeness to the dense model, then instructions followed and loops; `name` gives a model's name for people."""
    if found.answers:
        cells = [(name(key), f"{each.kl:.3f}", f"{percent(each.agreement)} %") for key, each in found.answers.items()]
        tokens = next(iter(found.answers.values())).tokens
        remarks = [f"{tokens:,} tokens of new answers that the dense model wrote itself"]
        yield ("answers of the dense model", "KL", "same first token"), cells, remarks
    if found.instructions:
        rows = [
            (name(key), f"{100 * each.followed:.1f} ± {100 * each.error:.1f} %", f"{100 * each.loops:.1f} %")
            for key, each in found.instructions.items()
        ]
        prompts = next(iter(found.instructions.values())).prompts
        remarks = [f"instructions: {prompts} prompts with a rule that a program checks"]
        yield ("chat", "instructions followed", "answers that end in a loop"), rows, remarks
