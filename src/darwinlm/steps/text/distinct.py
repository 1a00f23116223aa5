"""Samples without repetitions. Those that are repeated with another label are counted, since only one label is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from darwinlm.steps.text.packing import document_hash
from darwinlm.steps.text.samples import Sample


class Distinct:
    """The first of equal texts or pairs, as they are read.

    Attributes:
        contradictory: Number of repetitions so far whose label isn't that of the first one.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples
        self._read: dict[str, tuple[float | None, str]] = {}
        self._example = ""
        self.contradictory = 0

    def __iter__(self) -> Iterator[Sample]:
        for sample in self._samples:
            here = (sample.label, sample.where)
            label, where = first = self._read.setdefault(document_hash(f"{sample.query}\0{sample.text}"), here)
            if first is here:
                yield sample
            elif None not in (label, sample.label) and sample.label != label:
                self.contradictory += 1
                self._example = self._example or f"{where} ({label:g}) and {sample.where} ({sample.label:g})"

    @property
    def count(self) -> int:
        """Number of different texts or pairs so far."""
        return len(self._read)

    @property
    def remark(self) -> str:
        """What contradictory labels there are, and which of them count; empty if there are none."""
        if not self.contradictory:
            return ""
        repeat = "texts or pairs repeat" if self.contradictory > 1 else "text or pair repeats"
        return (
            f"{self.contradictory:,} {repeat} another one with a different label, such as {self._example}: "
            "the scores use the label that is read first, so correct the labels if these scores matter"
        )
