"""Sources of text in messages: text that the dense model wrote lies in a folder that no reader has named."""

from __future__ import annotations

from pathlib import Path

from darwinlm.steps.text.shares import SELF, named_parts

OWN_TEXT = "the model's own text"
_FOLDERS = (("own_text", "documents"), ("own_text_recovery", "documents"))
"""Last parts of the folders that the steps of own text write."""


def in_words(source: str) -> str:
    """A source as a reader knows it: `the model's own text` and `faq.csv`."""
    return ",".join(OWN_TEXT if _is_own(part) else part for part in named_parts(source))


def is_own_text(source: str) -> bool:
    """Whether the model wrote all of a source."""
    return all(map(_is_own, named_parts(source)))


def _is_own(part: str) -> bool:
    return part == SELF or Path(part).parts[-2:] in _FOLDERS
