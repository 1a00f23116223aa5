"""What is measured and told: the closed models in `summary.json` and other files of figures, and their reader."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.charts import Picture
from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.tables import Table

LARGEST_BITS = 128
"""Bits of the largest whole number in a file of figures: quotients and products of such numbers fit into floats."""


class Figures(BaseModel):
    """Base of closed models: an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def as_json(self) -> JsonObject:
        """Plain values: what the file holds."""
        return self.model_dump(mode="json")


AnyFigures = TypeVar("AnyFigures", bound=Figures)

ModelNames = Callable[[str], str]
"""The name of a measured model for people, by its key."""


@dataclass(frozen=True)
class Passage:
    """Part of a report: what a step measured, for the page, the card and the terminal.

    Attributes:
        heading: Heading on the page and the card.
        text: Paragraph above the tables; empty for none.
        tables: Tables with their remarks.
    """

    heading: str
    text: str = ""
    tables: tuple[Table, ...] = ()


class StepFigures(Figures):
    """What a step tells of its work, and the words in which reports show it.

    A subclass overrides what it has to say. All words are plain text: whoever draws them escapes them.

    Attributes:
        heading: Heading of `account` on the page.
        lasting: Whether the figures still hold for the model after it was trained by a later run.
    """

    heading: ClassVar[str] = ""
    lasting: ClassVar[bool] = True

    @classmethod
    def of_record(cls, record: Mapping[str, object], **fields: object) -> Self:
        """Figures from the fields of a step's own record that are among them, and `fields` fields."""
        return cls.model_validate({name: record[name] for name in cls.model_fields if name in record} | fields)

    @property
    def label(self) -> str:
        """The step's part of the name of models that it creates, such as `refit`; empty if it creates none."""
        return ""

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Lines of what was gained and lost, for the terminal and the top of the card: their names and words."""
        return ()

    def note(self) -> str:
        """Sentences below the comparison of models on the page."""
        return ""

    def passages(self, name: ModelNames) -> tuple[Passage, ...]:
        """Sections for the page, the card and the terminal; `name` gives a model's name for people."""
        del name
        return ()

    def pictures(self) -> tuple[Picture, ...]:
        """Pictures for the page, below `account`, and for Python."""
        return ()

    def account(self) -> tuple[str, ...]:
        """Paragraphs for the page, under `heading`, on how the model was created."""
        return ()

    def card(self) -> str:
        """Sentences for the card on how the model was created."""
        return ""

    def expectation(self) -> str:
        """What a reader must expect of the weights: the page's first sentence. That of the last step counts."""
        return ""


class Extract(BaseModel):
    """Base of models that take a part of a line in a step's record; other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def read_figures(
    path: Path, kind: type[AnyFigures], words: str, context: Mapping[str, object] | None = None
) -> AnyFigures:
    """Read a file of figures; `words` name the content and what to give. Raises ArtifactError.

    The `context` is for the validators of `kind`.
    """
    tree = read_json(path)
    if digits := _most_digits(tree):
        raise ArtifactError(
            f"{path} isn't a {words}: it holds a number of {digits} digits, and was damaged or edited: rerun the "
            "command that wrote it"
        )
    try:
        return kind.model_validate(tree, context=dict(context or {}))
    except ValidationError as error:
        raise ArtifactError(
            f"{path} isn't a {words}, or another version of darwinlm wrote it ({first_mistake(error)}): rerun the "
            "command that did"
        ) from error


def _most_digits(tree: object) -> int:
    """Digits of a whole number that is too large to compute with; 0 if a file of figures has none."""
    if isinstance(tree, dict | list):
        return max(map(_most_digits, tree.values() if isinstance(tree, dict) else tree), default=0)
    if not isinstance(tree, int) or tree.bit_length() <= LARGEST_BITS:
        return 0
    return int(tree.bit_length() * math.log10(2)) + 1


def first_mistake(error: ValidationError) -> str:
    """The first wrong field and what is wrong with it, in one line."""
    mistake = error.errors()[0]
    place = ".".join(map(str, mistake["loc"]))
    return f"{place}: {str(mistake['msg']).removeprefix('Value error, ')}"


@dataclass(frozen=True)
class StageTime:
    """A stage's time; reused from an earlier run, resumed after an interruption, whose last part was then timed."""

    name: str
    seconds: float
    reused: bool
    resumed: bool = False


class TimeFigures(Figures):
    """A time limit, the seconds used before the report, and the preset whose amounts of text fitted into it."""

    limit: float
    seconds: float
    preset: str
