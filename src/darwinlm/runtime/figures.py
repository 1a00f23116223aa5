"""What is measured: the closed models in `summary.json` and other files of figures, and their reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.errors import ArtifactError


class Figures(BaseModel):
    """Base of closed models: an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def as_json(self) -> dict[str, Any]:
        """Plain values: what the file holds."""
        return self.model_dump(mode="json")


AnyFigures = TypeVar("AnyFigures", bound=Figures)


class Extract(BaseModel):
    """Base of models that take a part of a stage's own record; other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def read_figures(path: Path, kind: type[AnyFigures], words: str) -> AnyFigures:
    """Read a file of figures; `words` name the content and what to give. Raises ArtifactError."""
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path} isn't a {words}, or another version of darwinlm wrote it ({where}: {first['msg']}): rerun the "
            "command that did"
        ) from error


ModelKey = Literal["dense", "uniform", "stitched", "refit", "before", "recovered"]
"""`before` is what `darwinlm recover` was given; the others are made by a run, in this order."""


@dataclass(frozen=True)
class CopyingScore:
    """Share of the tokens that can be copied and are ranked first, and their mean cross-entropy in nats."""

    name: str
    accuracy: float
    loss: float
    tokens: int


@dataclass(frozen=True)
class Spelling:
    """Length of a text in UTF-8 and in two vocabularies; the smaller one lacks `affected` of the dense tokens."""

    bytes: int = 0
    dense_tokens: int = 0
    tokens: int = 0
    affected: int = 0


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


class LookingBackFigures(Figures):
    """How far a model reads its context: copying. The remarks say what was left out."""

    copying: tuple[CopyingScore, ...] = ()
    remarks: tuple[str, ...] = ()


class AnswerFigures(Figures):
    """How close a model is to the dense one on the dense model's own answers to its own prompts.

    KL(dense ‖ model) is in nats per token. `agreement` is the share of tokens at which both rank the same token first:
    of greedy tokens that the dense model accepts from a draft.
    """

    tokens: int
    kl: float
    agreement: float


class QuantisedFile(Figures):
    """One GGUF file of a quantisation; KL(dense ‖ file) is in nats per token, as llama.cpp runs it."""

    quantisation: str
    bytes: int
    kl: float


class FileChoice(Figures):
    """The file that a budget bounds, measured on `tokens`, and the dense model quantised to the same bound.

    `dense` is None if no quantisation makes the dense model that small.
    """

    file: str
    tokens: int
    saved: QuantisedFile
    dense: QuantisedFile | None = None


class CodeFigures(Figures):
    """Shares of answers to coding tasks whose code parses as Python, and whose code is that of the dense model."""

    tasks: int
    parsed: float
    same: float


class ChatFigures(Figures):
    """What models do as chat models, by name: on answers of the dense one, and with coding tasks."""

    answers: dict[str, AnswerFigures]
    code: dict[str, CodeFigures] = {}


class ModelFigures(Figures):
    """One model, measured on evaluation text.

    Sizes are in the element type of the saved model. KL(dense ‖ model) is in nats per token; it and the perplexity are
    means of as many predictions as there are `tokens`; so is `agreement`, of the first rank: the share of the model's
    greedy tokens that the dense one accepts as a draft. Speeds are medians of the runs, of a prompt and of new text;
    `speed_spread` is by how much runs differ, as a share of the median, None after a single one. `looking_back` is None
    where that wasn't measured.
    """

    params: int
    block_params: int
    bytes: int
    perplexity: float | None = None
    kl: float | None = None
    tokens: int | None = None
    agreement: float | None = None
    tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    speed_spread: float | None = None
    continuations: tuple[str, ...] = ()
    looking_back: LookingBackFigures | None = None
