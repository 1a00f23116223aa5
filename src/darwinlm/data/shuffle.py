"""Random order of documents without holding all of them in memory."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

BUFFER_DOCUMENTS = 10_000
"""Default size of the buffer."""

BUFFER_CHARACTERS = 1 << 28
"""Maximum number of characters in the buffer, because single records may be whole books."""


@dataclass(frozen=True)
class Shuffle:
    """Random sampling of documents, because files are often sorted by book or date and a run reads only a part of them.

    Attributes:
        documents: Maximum number of documents in the buffer, all files together, at least 1. Each document drawn makes
            room for the next one. A source with fewer documents is shuffled as a whole.
    """

    seed: int = 0
    documents: int = BUFFER_DOCUMENTS

    def order(self, items: list[str]) -> list[int]:
        """Indices of the items in a random order, which depends only on the items and the seed."""
        numbers = list(range(len(items)))
        self._generator("order", *items).shuffle(numbers)
        return numbers

    def draw(self, documents: Iterable[str], name: str, *, files: int = 1) -> Iterator[str]:
        """Yield all documents of one file in a random order.

        Two files with the same name are shuffled alike. `files` is the number of files that are read at once and share
        the buffer.
        """
        generator = self._generator("file", name)
        most = max(1, self.documents // files)
        most_characters = BUFFER_CHARACTERS // files
        held: list[str] = []
        characters = 0
        for document in documents:
            held.append(document)
            characters += len(document)
            while held and (len(held) > most or characters > most_characters):
                place = generator.randrange(len(held))
                held[place], held[-1] = held[-1], held[place]  # so that the removal moves no others
                drawn = held.pop()
                characters -= len(drawn)
                yield drawn
        generator.shuffle(held)
        yield from held

    def _generator(self, *words: str) -> random.Random:
        return random.Random("\0".join((str(self.seed), *words)))  # noqa: S311 - no secret hangs on it
