"""Figures of a chat model, alone or beside the dense model: instructions, loops, and the dense model's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from darwinlm.evaluation.answers import measure_answers, write_answers
from darwinlm.evaluation.instructions import kept, measure_instructions
from darwinlm.evaluation.summary import number, percent
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.figures import AnswerFigures, InstructionFigures
from darwinlm.runtime.tables import Table


@dataclass(frozen=True)
class ChatScore:
    """Figures of one model; `answers` are those of the dense model, None without one."""

    model: str
    instructions: InstructionFigures
    answers: AnswerFigures | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        answers = None if self.answers is None else self.answers.as_json()
        return {"model": self.model, "instructions": self.instructions.as_json(), "answers": answers}


def measure_chats(
    model: tuple[str, Any], dense: tuple[str, Any] | None, tokenizer: Any, *, tokens: int, batch_tokens: int
) -> list[ChatScore]:
    """Measure a model, and a dense one if there is one, each with its name.

    The dense model writes at least `tokens` tokens of answers. Raises ModelError if the models can't chat.
    """
    both = [model, *([dense] if dense is not None else [])]
    closeness: dict[str, AnswerFigures] = {}
    if dense is not None:
        answers = write_answers(dense[1], tokenizer, tokens)
        if isinstance(answers, str):
            raise ModelError(f"{dense[0]} writes no chats: {answers}")
        closeness = measure_answers(dense[1], dict([model]), answers, batch_tokens=batch_tokens)
    return [ChatScore(name, measure_instructions(each, tokenizer), closeness.get(name)) for name, each in both]


def chat_tables(scores: Sequence[ChatScore]) -> Iterator[Table]:
    """Instructions followed and loops of each model, and closeness to the dense model."""
    cells = [
        (
            score.model,
            number(100 * score.instructions.followed, ".1f", 100 * score.instructions.error),
            f"{100 * score.instructions.loops:.1f}",
        )
        for score in scores
    ]
    remarks = [f"instructions: {scores[0].instructions.prompts} prompts with a rule that a program checks"]
    if len(scores) > 1 and (share := kept(scores[0].instructions, scores[1].instructions)) is not None:
        remarks.append(
            f"of the rules that the dense model follows in more than 20 % of its answers, {share:.0%} is kept"
        )
    yield ("chat", "instructions followed, %", "answers that end in a loop, %"), cells, remarks
    for score in scores:
        if (found := score.answers) is not None:
            headings = ("on the dense model's own answers", "tokens", "KL", "KL, median", "KL, 99 %")
            row = (score.model, f"{found.tokens}", *(f"{kl:.4f}" for kl in (found.kl, found.kl_median, found.kl_99)))
            shares = (percent(found.agreement), percent(found.acceptance))
            yield (*headings, "same first token, %", "accepted as a draft, %"), [(*row, *shares)], []
