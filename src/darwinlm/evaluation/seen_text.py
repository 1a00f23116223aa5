"""How much of an evaluation's text the run that made the model has read: figures on such text are too good.

Documents are compared by their hashes, and near copies by their passages (`steps/text/shared_passages.py`). The run's
evaluation text, on which no choice depends, doesn't count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from darwinlm.evaluation.evaluation_text import EvaluationText
from darwinlm.runtime.artifact import KEY, MANIFEST, MARKER, STAGES, read_json
from darwinlm.runtime.json_values import JsonObject
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.shared_passages import passages_of, share_covered
from darwinlm.steps.text.text_source import fingerprint

CHANCE = 0.05
"""Share of tokens in shared passages that is worth a remark; two halves of C4's excerpts share 0.0005 of theirs."""
MOSTLY = 0.5
"""Share of special tokens from which a text is hardly one."""
HELD_OUT = "evaluation"
"""Purpose of the run's text on which nothing depends."""


@dataclass(frozen=True)
class Overlap:
    """What of a text was seen.

    Attributes:
        documents: Number of documents that were read.
        seen: Number of those that the run read for each purpose; empty without a run.
        passages: Share of the tokens that lie in passages of the run's text.
        trained: Whether recovery trained on documents of the same source, which it doesn't record.
        special: Share of special tokens, which a text has few of.
    """

    documents: int
    seen: dict[str, int]
    passages: float
    trained: bool
    special: float

    def as_json(self) -> JsonObject:
        """Plain values."""
        return {
            "documents": self.documents,
            "seen_documents": self.seen,
            "seen_passages": self.passages,
            "trained_on_source": self.trained,
            "special_tokens": self.special,
        }

    def remarks(self, source: str) -> Iterator[str]:
        """Sentences about what makes figures on this text doubtful."""
        if self.seen:
            purposes = ", ".join(f"{purpose} {count:,}" for purpose, count in self.seen.items())
            count = sum(self.seen.values())
            yield f"{source}: the run has read {count:,} of these {self.documents:,} documents ({purposes})"
        elif self.passages > CHANCE:
            yield (
                f"{source}: {self.passages:.0%} of its tokens are in passages that the run has read: near copies, or a "
                "common template"
            )
        if self.trained:
            yield f"{source}: recovery trained on other documents of this source, or on the same ones"
        if self.special > MOSTLY:
            yield f"{source}: {self.special:.0%} of its tokens are special ones, so this is no usual text"


class RunText:
    """The text that a run has read, from its folder of stages."""

    def __init__(self, stages: Path) -> None:
        self._stages = stages

    @cached_property
    def purposes(self) -> dict[str, TokenSequences]:
        """Its sequences by purpose, without the evaluation text."""
        folders = sorted(path.parent for path in self._stages.glob("text/*/blocks.json"))
        return {path.name: TokenSequences.load(path) for path in folders if path.name != HELD_OUT}

    @cached_property
    def _passages(self) -> NDArray[np.uint64]:
        """Hashes of all passages, sorted."""
        return passages_of(self.purposes.values())

    def overlap(self, text: EvaluationText) -> Overlap:
        """What of a text, in the tokens of the run's model, the run has read. Raises ArtifactError."""
        read = {hashed: purpose for purpose, part in self.purposes.items() for hashed in part.document_hashes}
        purposes = [read[hashed] for hashed in text.document_hashes if hashed in read]
        seen = {purpose: purposes.count(purpose) for purpose in self.purposes if purpose in purposes}
        passages = share_covered(text.tokens.numpy(), self._passages)
        return Overlap(len(text.document_hashes), seen, passages, self._trained_on(text.source), text.special)

    def _trained_on(self, source: str) -> bool:
        """Whether a recovery of the run read files or data sets of a source."""
        folder = self._stages / "recover"
        if not (folder / MANIFEST).is_file():
            return False
        key = read_json(folder / KEY)
        trained = key.get("text") if isinstance(key, dict) else None
        return bool(_parts(trained) & _parts(fingerprint(source)))


def run_of(model: str) -> RunText | None:
    """The text of the run that made a model, which its folder, or that of its model, names; None if there is none."""
    folder = Path(model).expanduser()
    for run in (folder, folder.absolute().parent, folder.absolute().parent.parent):  # sizes of a sweep share their text
        if (run / MARKER).is_file() and (run / STAGES / "text" / MANIFEST).is_file():
            return RunText(run / STAGES)
    return None


def without_run(text: EvaluationText) -> Overlap:
    """What is known of a text without a run."""
    return Overlap(len(text.document_hashes), {}, 0.0, trained=False, special=text.special)


def _parts(identity: object) -> set[str]:
    """Hashes of files and names of data sets in a fingerprint."""
    found: set[str] = set()
    for part in identity if isinstance(identity, list) else []:
        files = part.get("files") if isinstance(part, dict) else None
        found |= set(map(str, files.values())) if isinstance(files, dict) else set()
        if isinstance(part, dict) and part.get("hub"):
            found.add(str(part["hub"]))
    return found
