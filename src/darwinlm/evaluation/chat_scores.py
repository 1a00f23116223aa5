"""Figures of chat models: closeness to the dense model's own answers, and coding tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from darwinlm.evaluation.answers import measure_answers, write_answers
from darwinlm.evaluation.code import compare_code, write_code
from darwinlm.evaluation.summary import percent
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.figures import ChatFigures
from darwinlm.runtime.tables import Table


def measure_chats(models: Mapping[str, Any], *, tokens: int, batch_tokens: int) -> ChatFigures:
    """Measure a model against the dense one; processes share the work.

    `models` are these two by name, `engines.opened.Opened`. The dense one writes at least `tokens` tokens of answers.
    Raises ModelError if the models can't chat.
    """
    (name, small), (original, dense) = models.items()
    written = write_answers(dense.model, small.tokenizer, tokens)
    if isinstance(written, str):
        raise ModelError(f"{original} writes no chats: {written}")
    readers = {name: small.decoder(written.tokens)}
    answers = measure_answers(dense.decoder(written.tokens), readers, written, batch_tokens=batch_tokens)
    blocks = {key: write_code(each.model, small.tokenizer) for key, each in models.items()}
    code = {key: compare_code(each, blocks[original]) for key, each in blocks.items()}
    return ChatFigures(answers=answers, code={key: each for key, each in code.items() if each is not None})


def chat_tables(found: ChatFigures, name: Callable[[str], str] = str) -> Iterator[Table]:
    """Closeness to the dense model, and code; `name` gives a model's name for people."""
    if found.answers:
        cells = [(name(key), f"{each.kl:.3f}", f"{percent(each.agreement)} %") for key, each in found.answers.items()]
        tokens = next(iter(found.answers.values())).tokens
        remarks = [f"{tokens:,} tokens of new answers that the dense model wrote itself"]
        yield ("answers of the dense model", "KL", "same first token"), cells, remarks
    if found.code:
        shares = [
            (name(key), f"{percent(each.parsed)} %", f"{percent(each.same)} %") for key, each in found.code.items()
        ]
        tasks = next(iter(found.code.values())).tasks
        remarks = [f"code: {tasks} Python functions that the dense model writes; same: the same syntax tree"]
        yield ("coding answers", "parse as Python", "same as the dense model's"), shares, remarks
