"""Where the text of a run comes from, and what identifies it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.artifact import file_digest
from darwinlm.runtime.errors import RecipeError
from darwinlm.steps.text.leakage import check_not_evaluation_text
from darwinlm.steps.text.reading import check_reading
from darwinlm.steps.text.shares import SELF, named_parts
from darwinlm.steps.text.sources import LocalSource, parse_source

if TYPE_CHECKING:
    from darwinlm.steps.own_text.documents import Documents
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.text.text_settings import TextSettings


def given_source(settings: TextSettings) -> str:
    """Source of the run's text. Raises RecipeError if the recipe names none."""
    if not settings.source:
        raise RecipeError("text.source: no text is given; name a file, a folder, hf:owner/name, or self")
    return settings.source


def with_own_text(source: str, own_text: Documents | None) -> str:
    """A source with the files of the model's own text in place of `self`."""
    folder = None if own_text is None else own_text.folder
    return ",".join(str(folder) if part == SELF else part for part in named_parts(source))


def check_text(settings: TextSettings, model: Checkpoint) -> None:
    """Refuse sequences that are too long for a model, and text of a benchmark. Raises RecipeError, DataError."""
    check_length(settings.sequence_length, model)
    check_reading(model, settings)
    check_source(given_source(settings))


def check_length(length: int, *models: Checkpoint) -> None:
    """Refuse sequences longer than a model allows. Raises RecipeError."""
    for model in models:
        longest = getattr(model.config, "max_position_embeddings", None)
        if longest and length > longest:
            raise RecipeError(
                f"text.sequence_length is {length}, but {model.source} allows {longest} tokens: "
                f"--set text.sequence_length={longest}"
            )


def check_source(source: str) -> None:
    """Refuse evaluation text of a benchmark, as `check_not_evaluation_text`; the model's own text never is."""
    if given_parts := [part for part in named_parts(source) if part != SELF]:
        check_not_evaluation_text(",".join(given_parts))


def documents_of(text: Mapping[str, TokenSequences]) -> tuple[str, ...]:
    """Hashes of all documents, on which recovery may not train."""
    return tuple(sorted({document for part in text.values() for document in part.document_hashes}))


def text_identity(settings: TextSettings) -> Mapping[str, object]:
    """Identity of the run's text for keys, and the template of its pairs if the recipe has one. Raises RecipeError."""
    template = {} if settings.template is None else {"template": settings.template}
    return {"text": fingerprint(given_source(settings)), **template}


def fingerprint(source: str) -> list[dict[str, object]]:
    """Identity of a source for keys: hashes of local files, names of data sets of the hub, or `self`."""
    return [{SELF: True} if part == SELF else _fingerprint(part) for part in named_parts(source)]


def _fingerprint(part: str) -> dict[str, object]:
    parsed = parse_source(part)
    if not isinstance(parsed, LocalSource):
        return {"hub": part}
    root = parsed.path if parsed.path.is_dir() else parsed.path.parent
    files = {str(Path(file).relative_to(root)): file_digest(file) for file in parsed.files()}
    return {"files": files, "field": parsed.field}
