"""A file of questions, one a line of JSON, and what each kind of question takes.

| fields | score |
| --- | --- |
| `answer`, which may be a list | 1 if the model's greedy answer contains one of them, or is one with `match: exact` |
| `choices`, `answer` (its text, or its number from 0) | 1 if that choice is the most likely for its length |
| `tests`, lines of Python | 1 if the code that the model writes runs with them |

The question is `question` or a list `messages`, which a chat model gets in its template, or a `prompt`, which every
model continues as it stands.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from darwinlm.evaluation.measures.judged_answer import normal
from darwinlm.runtime.errors import DataError
from darwinlm.runtime.limits import shorten, suggestion
from darwinlm.steps.text.local_files import json_records

ANSWER_TOKENS, CODE_TOKENS = 64, 512
"""Longest answer by default, and longest answer with code."""


class Question(BaseModel):
    """One item.

    Attributes:
        tokens: Longest answer; None takes the default.
        id: Any name, which is ignored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str | None = None
    messages: list[dict[str, JsonValue]] | None = None
    prompt: str | None = None
    answer: str | int | list[str] | None = None
    choices: list[str] | None = None
    tests: str | None = None
    match: Literal["contains", "exact"] = "contains"
    tokens: int | None = Field(None, ge=1, le=100_000)
    id: str | int | None = None

    @field_validator("answer", mode="before")
    @classmethod
    def _is_text(cls, answer: object) -> object:
        texts = answer if isinstance(answer, list) else [answer]
        known = all(isinstance(text, str) for text in texts) or isinstance(answer, int | None)
        if isinstance(answer, bool) or not known:  # true would be choice 1, which may be "no"
            raise ValueError(f"{shorten(json.dumps(answer))} must be text in quotation marks, or a list of such texts")
        return answer

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        asked = [name for name in ("question", "messages", "prompt") if getattr(self, name) is not None]
        if len(asked) != 1:
            raise ValueError(f"give one of question, messages and prompt, not {' and '.join(asked) or 'none of them'}")
        given = getattr(self, asked[0])
        if not (given.strip() if isinstance(given, str) else given):
            raise ValueError(f"{asked[0]} is empty")
        if self.tests is not None:
            if self.answer is not None or self.choices is not None:
                raise ValueError("tests judge code, so there is neither an answer nor choices: give one of them")
            if not self.tests.strip():
                raise ValueError("tests is empty")
        elif self.choices is not None:
            self._check_choices(self.choices)
        elif not self.answers or not all(answer.strip() for answer in self.answers):
            raise ValueError("the answer is missing or empty: give answer, or tests for code")
        elif self.match == "exact" and not all(map(normal, self.answers)):
            raise ValueError("an answer of punctuation alone can't be compared exactly: leave match out")
        return self

    def _check_choices(self, choices: list[str]) -> None:
        if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
            raise ValueError("choices must be two or more different texts")
        if isinstance(self.answer, list) or not 0 <= self._place(choices) < len(choices):
            raise ValueError(f"the answer must be one of the choices, or its number from 0 to {len(choices) - 1}")

    def _place(self, choices: list[str]) -> int:
        if isinstance(self.answer, int):
            return self.answer
        return choices.index(self.answer) if self.answer in choices else -1

    @property
    def answers(self) -> list[str]:
        """The answers of which the model must give one."""
        if self.answer is None:
            return []
        return self.answer if isinstance(self.answer, list) else [str(self.answer)]

    @property
    def right(self) -> int:
        """Index of the right choice."""
        assert self.choices is not None, "a question with choices"
        return self._place(self.choices)

    @property
    def longest(self) -> int:
        """Longest answer in tokens; 0 for choices, which are only read."""
        if self.choices is not None:
            return 0
        return self.tokens or (ANSWER_TOKENS if self.tests is None else CODE_TOKENS)

    @property
    def text(self) -> str:
        """The words of the question, without its answer."""
        if self.messages is not None:
            return "\n".join(str(message.get("content", "")) for message in self.messages)
        return self.question or self.prompt or ""


def read_questions(path: Path) -> list[Question]:
    """The questions of a file. Raises DataError, which names the line.

    An item that occurs twice is refused: it would count twice, and make the intervals of the scores too narrow.
    """
    questions, places = [], dict[str, str]()
    for place, record in json_records(path):
        if not _is_unicode(record):
            raise DataError(f"{place}: half of a surrogate pair (\\ud800 to \\udfff) is no character: write it whole")
        try:
            question = Question.model_validate(dict(record))
        except ValidationError as error:
            mistake = error.errors()[0]
            field = str(mistake["loc"][0]) if mistake["loc"] else ""
            if mistake["type"] == "extra_forbidden":
                hint = suggestion(field, Question.model_fields, f"known are {', '.join(Question.model_fields)}")
                raise DataError(f"{place}: there is no field '{shorten(field)}': {hint}") from error
            message = str(mistake["msg"]).removeprefix("Value error, ")
            raise DataError(f"{place}: {f'{field}: ' if field else ''}{message}") from error
        first = places.setdefault(question.model_dump_json(exclude={"id"}), place)
        if first != place:
            raise DataError(f"{place}: the same item as in {first.removeprefix(f'{path}, ')}: keep one of them")
        questions.append(question)
    if not questions:
        raise DataError(f"{path} holds no questions: give one JSON object a line")
    return questions


def _is_unicode(record: object) -> bool:
    try:
        json.dumps(record, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True
