"""Figures of chat models: closeness to the dense model's own answers, instructions followed, loops, and code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from darwinlm.evaluation.answers import measure_answers, write_answers
from darwinlm.evaluation.code import compare_code, write_code
from darwinlm.evaluation.instructions import measure_instructions
from darwinlm.evaluation.summary import percent
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.figures import AnswerFigures, ChatFigures, InstructionFigures
from darwinlm.runtime.tables import Table
from darwinlm.streaming.hidden import HiddenMemory


def measure_chats(
    names: Sequence[str],
    load: Callable[[str], Any],
    read: Callable[[str, Tensor], Any],
    dense: str | None,
    tokenizer: Any,
    *,
    tokens: int,
    batch_tokens: int,
    memory: HiddenMemory | None = None,
) -> ChatFigures:
    """Measure models, of which one is whole at a time; processes share the work.

    Args:
        names: Names of the models.
        load: Gives a whole model by its name.
        read: Gives a model by its name, to read some tokens with: a decoder, or a whole one.
        dense: Name of the dense one, which writes at least `tokens` tokens of answers; None without one.
        tokenizer: That of all models.
        tokens: Answer tokens on which the others are compared with it.
        batch_tokens: Tokens in one pass.
        memory: Where streams of decoders may go.

    Raises ModelError if the models can't chat.
    """
    answers, instructions = dict[str, AnswerFigures](), dict[str, InstructionFigures]()
    blocks: dict[str, list[str | None]] = {}

    def ask(name: str, model: Any) -> None:
        instructions[name] = measure_instructions(model, tokenizer)
        blocks[name] = write_code(model, tokenizer)

    others = [name for name in names if name != dense]
    if dense is not None:
        original = load(dense)
        written = write_answers(original, tokenizer, tokens)
        if isinstance(written, str):
            raise ModelError(f"{dense} writes no chats: {written}")
        ask(dense, original)
        del original
        readers = {name: read(name, written.tokens) for name in others}
        answers = measure_answers(
            read(dense, written.tokens), readers, written, batch_tokens=batch_tokens, memory=memory
        )
    for name in others:
        ask(name, load(name))
    code = {name: compare_code(each, blocks[dense or name]) for name, each in blocks.items()}
    found = {name: figures for name, figures in code.items() if figures is not None}
    return ChatFigures(answers=answers, instructions=instructions, code=found)


def chat_tables(found: ChatFigures, name: Callable[[str], str] = str) -> Iterator[Table]:
    """Closeness to the dense model, instructions, loops and code; `name` gives a model's name for people."""
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
    if found.code:
        shares = [
            (name(key), f"{percent(each.parsed)} %", f"{percent(each.same)} %") for key, each in found.code.items()
        ]
        tasks = next(iter(found.code.values())).tasks
        remarks = [f"code: {tasks} Python functions that the dense model writes; same: the same syntax tree"]
        yield ("coding answers", "parse as Python", "same as the dense model's"), shares, remarks
