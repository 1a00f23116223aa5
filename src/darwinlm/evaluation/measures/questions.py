"""A measure that is a file of questions: greedy answers, choices by likelihood, and code with tests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.evaluation.measures.judged_answer import contains, normal
from darwinlm.evaluation.measures.likelihood import log_likelihoods
from darwinlm.evaluation.measures.question_file import Question, read_questions
from darwinlm.evaluation.measures.tested_code import passes
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of, file_digest
from darwinlm.runtime.errors import DataError, MeasureError, RecipeError
from darwinlm.steps.chats.code import continued, first_block
from darwinlm.steps.text.packing import added_bos
from darwinlm.steps.text.records import chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOGETHER = 64
"""Items of one process that are scored, and then kept, at a time."""
CODE_SECONDS = 10.0
"""Time of a test of code."""
VERSION = 2
"""Raised when the same file gives other scores."""
ENDS = re.compile(r"\n(?:class|def|#|if|print)")
"""Where a continuation of code has ended its function, as in lm-evaluation-harness's HumanEval."""


class FileMeasure(Measure):
    """The questions of a file, the first `limit` ones if there is a limit.

    Raises DataError if the file is wrong, RecipeError if it holds code and `run_code` isn't given.
    """

    resumes = True

    def __init__(self, path: Path, limit: int | None = None, *, run_code: bool) -> None:
        self.name, self.path = path.name, path
        if not path.is_file():
            raise RecipeError(
                f"--measure {path}: {'this is no plain file' if path.exists() else 'there is no such file'}"
            )
        self.questions = read_questions(path)[:limit]
        self._digest = digest_of([file_digest(path), VERSION, *([] if limit is None else [limit])])
        code = next((number for number, question in enumerate(self.questions, 1) if question.tests is not None), None)
        if code is not None and not run_code:
            raise RecipeError(
                f"--measure {path}: item {code} has tests, for which code that a model writes is run on this machine, "
                "with limits on time and memory but no sandbox: allow it with --run-code"
            )

    @property
    def digest(self) -> str:
        """The file's content."""
        return self._digest

    def texts(self) -> list[str]:
        """The questions."""
        return [question.text for question in self.questions]

    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: int = 0) -> Iterator[float]:
        """0 or 1 for each question. Raises MeasureError."""
        size = TOGETHER * parallel.size()
        for start in range(known, len(self.questions), size):
            yield from self._scored(model, tokenizer, start, self.questions[start : start + size])

    def _scored(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: int, questions: Sequence[Question]
    ) -> list[float]:
        prompts, rooms = [], []
        for number, question in enumerate(questions, start + 1):
            where = f"{self.name}: item {number}"
            prompts.append(rendered(question, tokenizer, where))
            rooms.append(_room(model, tokenizer, prompts[-1], question, where))
        scores = [0.0] * len(questions)
        for place, score in _chosen(model, tokenizer, questions, prompts).items():
            scores[place] = score
        for longest in sorted({*rooms} - {0}):
            places = [place for place, room in enumerate(rooms) if room == longest]
            inputs = [prompts[place].tokens(tokenizer) for place in places]
            answers = continued(model, tokenizer, inputs, longest)
            own = parallel.portion(list(zip(places, answers, strict=True)))
            judgements = {place: judged(questions[place], prompts[place], answer) for place, answer in own}
            for part in parallel.gather(judgements):
                for place, right in part.items():
                    scores[place] = float(right)
        return scores


class Prompt:
    """What a model reads.

    Attributes:
        text: The text.
        chat: Whether it is a rendered chat, which holds its own special tokens.
        free: Whether it is the user's own `prompt`, and not put into a form.
    """

    def __init__(self, text: str, *, chat: bool, free: bool = False) -> None:
        self.text, self.chat, self.free = text, chat, free

    def tokens(self, tokenizer: PreTrainedTokenizerBase, continuation: str = "") -> list[int]:
        """Tokens of the text and a continuation."""
        special = not self.chat or added_bos(tokenizer) is not None  # which the rendered chat leaves out
        ids: list[int] = tokenizer(self.text + continuation, add_special_tokens=special)["input_ids"]
        return ids

    def joined(self, choice: str) -> str:
        """A choice as a continuation: after a space, unless a chat's answer begins or there is space already."""
        spaced = self.chat or self.text[-1:].isspace() or choice[:1].isspace()
        return choice if spaced else f" {choice}"


def rendered(question: Question, tokenizer: PreTrainedTokenizerBase, where: str) -> Prompt:
    """A question as the model reads it. Raises MeasureError if it has no chat template for messages."""
    if question.prompt is not None:
        return Prompt(question.prompt, chat=False, free=True)
    template = getattr(tokenizer, "chat_template", None)
    messages = question.messages
    if messages is None:
        if not template:
            return Prompt(f"Question: {question.question}\nAnswer:", chat=False)
        messages = [{"role": "user", "content": question.question}]
    try:
        return Prompt(chat_text(messages, tokenizer, where, answering=True), chat=True)
    except DataError as error:
        raise MeasureError(str(error)) from error


def _room(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, question: Question, where: str
) -> int:
    """Longest answer that fits into the model's context after a question; 0 for choices.

    Raises MeasureError if the question, or the length that it asks for, doesn't fit.
    """
    context = getattr(model.config, "max_position_embeddings", None)
    last = max((prompt.joined(choice) for choice in question.choices or ()), key=len, default="")
    read = len(prompt.tokens(tokenizer, last))
    least = question.tokens or min(question.longest, 1)
    if context and read + least > context:
        raise MeasureError(
            f"{where} takes {read + least:,} tokens with its answer, but the model reads {context:,}: shorten it"
            + (", or give it fewer `tokens`" if question.tokens else "")
        )
    return min(question.longest, context - read) if context else question.longest


def _chosen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
) -> dict[int, float]:
    """Scores of the questions with choices, by their places; likelihoods are divided by the length in bytes."""
    texts, lengths, where = [], [], []
    for place, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
        for choice in question.choices or ():
            before = prompt.tokens(tokenizer)
            whole = prompt.tokens(tokenizer, prompt.joined(choice))
            # If the choice changes the prompt's last token, that token counts as its first.
            shared = min(len(before), len(whole) - 1)
            while shared > 1 and whole[:shared] != before[:shared]:
                shared -= 1
            texts.append((whole[:shared], whole[shared:]))
            lengths.append(len(choice.encode("utf-8", "surrogatepass")))
            where.append(place)
    values: dict[int, list[float]] = {}
    for place, value, length in zip(where, log_likelihoods(model, texts), lengths, strict=True):
        values.setdefault(place, []).append(value / length)
    return {
        place: float(max(range(len(of_choices)), key=of_choices.__getitem__) == questions[place].right)
        for place, of_choices in values.items()
    }


def judged(question: Question, prompt: Prompt, answer: str) -> bool:
    """Whether an answer is right."""
    if question.tests is not None:
        return passes(_code(prompt, answer), question.tests, CODE_SECONDS)
    if not prompt.chat and not prompt.free:
        answer = answer.partition("\n")[0]  # a model without a template goes on with a question of its own
    if question.match == "exact":
        return normal(answer) in map(normal, question.answers)
    return any(contains(answer, expected) for expected in question.answers)


def _code(prompt: Prompt, answer: str) -> str:
    """The code in an answer: its first block, or the continuation of a prompt up to the end of its function."""
    if not prompt.free:
        return first_block(answer) or answer
    end = ENDS.search(answer)
    return prompt.text + (answer if end is None else answer[: end.start()])
