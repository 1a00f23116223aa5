"""Files of figures: closed, versioned models, and their reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from darwinlm.artifact import read_json
from darwinlm.errors import ArtifactError

FORMAT: Literal[1] = 1


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
    """Read a file of figures that states its format.

    `words` name the content and what to give, for messages.

    Raises:
        ArtifactError: The file is missing, has other content, or was written by a version with another format.
    """
    tree = read_json(path)
    if not isinstance(tree, dict) or not tree.keys() & (kind.model_fields.keys() - {"format", "version"}):
        raise ArtifactError(f"{path} holds no {words}")
    if tree.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} was written by darwinlm {tree.get('version', 'of an unknown version')} in format "
            f"{tree.get('format', 'none')}, and this version reads format {FORMAT}: rerun the command that wrote it"
        )
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"{path} isn't what this version reads ({where}: {first['msg']}): rerun the command that wrote it"
        ) from error
