"""Where the text of a run comes from, how much of it each purpose gets, and what identifies it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from darwinlm.data.packing import added_bos
from darwinlm.data.sources import LocalSource, parse_source
from darwinlm.execution.stage import Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe
from darwinlm.runtime.artifact import digest_of, file_digest
from darwinlm.runtime.errors import RecipeError

TEXT_SETTINGS = ("text.source", "text.sequence_length", "text.seed", "text.allow_benchmark_text")
"""Settings that decide which documents a run reads."""


def given_source(recipe: Recipe) -> str:
    """Source of the run's text. Raises RecipeError if there is none."""
    if not recipe.text.source:
        raise RecipeError("text.source: no text is given; name a file, a folder, or hf:owner/name")
    return recipe.text.source


def shares_of(recipe: Recipe) -> dict[str, int]:
    """Number of tokens for each purpose."""
    settings, training = recipe.text, recipe.search.training_needed
    shares = {
        "calibration": settings.calibration_tokens,
        "fitness": recipe.search.fitness_needed,
        "validation": settings.validation_tokens,
        "evaluation": settings.evaluation_tokens,
    }
    return {**shares, "training": training} if training else shares


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


def fingerprint(source: str) -> dict[str, object]:
    """Identity of a source for keys: hashes of local files, or the name of a data set of the hub."""
    parsed = parse_source(source)
    if not isinstance(parsed, LocalSource):
        return {"hub": source}
    root = parsed.path if parsed.path.is_dir() else parsed.path.parent
    files = {str(Path(file).relative_to(root)): file_digest(file) for file in parsed.files()}
    return {"files": files, "field": parsed.field}


def _tokenizer_digest(tokenizer: object) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return hashlib.blake2b(backend.to_str().encode(), digest_size=16).hexdigest()
    return digest_of(sorted(tokenizer.get_vocab().items()))  # type: ignore[attr-defined]
