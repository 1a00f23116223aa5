"""Scores that are kept by content: of a model's weights on a measure's items.

The same model and items are never scored twice on a machine, so that several sizes share the answers of the dense
model, and an interrupted measurement goes on. The files lie in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of, read_as, write_json
from darwinlm.runtime.errors import ArtifactError, StorageError, storage_error
from darwinlm.runtime.folders import make_folder, remove

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BETWEEN = 5.0
"""Seconds between two times at which finished scores are written."""
LEFT = 3600.0
"""Seconds after which a temporary file is nobody's any more."""


class Scored(Protocol):
    """A model to score."""

    @property
    def identity(self) -> Mapping[str, str]:
        """What identifies its weights, and how it computes."""

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer, when they are needed."""

    def release(self) -> None:
        """Forget the loaded model."""


@dataclass(frozen=True)
class _Kept:
    scores: list[float]
    whole: bool


class ScoreStore:
    """Scores in a folder, one file for each model and measure."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or _cache_folder()

    def check(self) -> None:
        """Try to write into the folder, since hours pass before there are scores. Raises StorageError."""
        parallel.in_main(self._try)

    def _try(self) -> None:
        try:
            make_folder(self.folder)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._refused(storage_error(self.folder, error)) from error

    def scores(self, model: Scored, measure: Measure) -> list[float]:
        """The score of each item, from the folder as far as they are there. Raises MeasureError, StorageError."""
        path = self._path(model, measure)
        kept = self._kept(path)
        if kept.whole:
            return kept.scores
        scores = list(kept.scores) if measure.resumes else []
        written = time.monotonic()
        try:
            for score in measure.score(*model.load(), known=len(scores)):
                scores.append(score)
                if measure.resumes and time.monotonic() - written > BETWEEN:
                    self._write(path, scores, whole=False)
                    written = time.monotonic()
        except BaseException:
            if measure.resumes and scores:
                self._write(path, scores, whole=False)
            raise
        self._write(path, scores, whole=True)
        return scores

    def has(self, model: Scored, measure: Measure) -> bool:
        """Whether the score of each item is there."""
        return self._kept(self._path(model, measure)).whole

    def _path(self, model: Scored, measure: Measure) -> Path:
        return self.folder / f"{digest_of([dict(model.identity), measure.digest])}.json"

    def _kept(self, path: Path) -> _Kept:
        return parallel.broadcast(_read(path) if parallel.is_main() else _Kept([], whole=False))

    def _write(self, path: Path, scores: list[float], *, whole: bool) -> None:
        if not parallel.is_main():
            return
        try:
            write_json(path, {"scores": scores, "whole": whole})
        except StorageError as error:
            raise self._refused(error) from error
        if whole:
            self._tidy()

    def _tidy(self) -> None:
        """Remove what killed processes left; others may be writing now."""
        with contextlib.suppress(OSError):
            for left in self.folder.glob(".*.json.*.tmp"):
                if time.time() - left.lstat().st_mtime > LEFT:
                    remove(left)

    def _refused(self, error: StorageError) -> StorageError:
        return StorageError(
            f"{error}; scores are kept in {self.folder}: set XDG_CACHE_HOME to a folder that can be written"
        )


def _read(path: Path) -> _Kept:
    """What is kept; nothing if the file is missing or damaged."""
    if not path.is_file():
        return _Kept([], whole=False)
    try:
        return read_as(path, _Kept)
    except ArtifactError:
        return _Kept([], whole=False)


def _cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "darwinlm" / "scores"
