"""Where the text of a run comes from, how much of it each purpose gets, and what identifies it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe
from darwinlm.runtime.artifact import digest_of, file_digest
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.step import Task
from darwinlm.steps.text.leakage import check_not_evaluation_text
from darwinlm.steps.text.packing import added_bos
from darwinlm.steps.text.shares import SELF, named_parts
from darwinlm.steps.text.sources import LocalSource, parse_source

TEXT_SETTINGS = ("text.source", "text.sequence_length", "text.seed")
"""Settings that decide which documents a run reads."""


def given_source(recipe: Recipe) -> str:
    """Source of the run's text. Raises RecipeError if there is none."""
    if not recipe.text.source:
        raise RecipeError("text.source: no text is given; name a file, a folder, hf:owner/name, or self")
    return recipe.text.source


def with_own_text(source: str, own_text: Path | None) -> str:
    """A source with the files of the model's own text in place of `self`."""
    return ",".join(str(own_text) if part == SELF else part for part in named_parts(source))


def check_source(source: str) -> None:
    """Refuse evaluation text of a benchmark, as `check_not_evaluation_text`; the model's own text is none."""
    if others := [part for part in named_parts(source) if part != SELF]:
        check_not_evaluation_text(",".join(others))


def text_key(task: Task, model: Checkpoint, shares: dict[str, int]) -> dict[str, Any]:
    """Identity of the text and of the tokens that it is cut into."""
    tokenizer = model.tokenizer()
    return {
        "text": fingerprint(given_source(task.recipe)),
        "tokenizer": _tokenizer_digest(tokenizer),
        "shares": shares,
        "blocks_begin_with": added_bos(tokenizer),
        "chat_template": digest_of(tokenizer.chat_template) if tokenizer.chat_template else None,
    }


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


def _tokenizer_digest(tokenizer: object) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.blake2b(backend.to_str().encode(), digest_size=16).hexdigest()
    return digest_of(sorted(tokenizer.get_vocab().items()))  # type: ignore[attr-defined]
