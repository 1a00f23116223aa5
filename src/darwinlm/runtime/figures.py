"""What is measured: the closed models in `summary.json` and other files of figures, and their reader."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
