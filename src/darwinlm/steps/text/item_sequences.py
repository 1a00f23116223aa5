"""Samples for each purpose, disjoint by query, as sequences of items.

As for other text (`splits.py`), a hash of a sample's query, or of its text, decides its purpose. If the source ends
before every purpose has enough, those that lack text get what others have too much of, and then all get less.

Letters: B sequences, T tokens in a sequence, i complete items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from darwinlm.model.walk.items import sequence_of
from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.distinct import Distinct
from darwinlm.steps.text.encoder import ItemEncoder
from darwinlm.steps.text.packing import document_hash
from darwinlm.steps.text.samples import Sample
from darwinlm.steps.text.sequences import ItemLabels, TokenSequences
from darwinlm.steps.text.splits import PURPOSES, purpose_of

WAITING = 24
"""Items that wait for a sequence that they fit in."""
LEAST = 4
"""Fewest tokens that are filled with the beginning of an item."""
TEXT_ROLE, QUERY_ROLE = 0, 1
NO_LABEL = float("nan")


@dataclass(frozen=True)
class Item:
    """One input of the model.

    Attributes:
        group: Number of its query, or of itself without one.
        role: Whether it is a text or a pair, or a query on its own.
        label: The label of the text or pair; NaN without one.
    """

    tokens: list[int]
    group: int
    role: int
    label: float


@dataclass
class Filling:
    """The sequences of one purpose, which are filled item by item.

    Attributes:
        wanted: Number of sequences to fill.
    """

    wanted: int
    length: int
    rows: list[list[int]] = field(default_factory=list)
    placed: list[Item] = field(default_factory=list)
    waiting: list[Item] = field(default_factory=list)
    hashes: dict[str, None] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether there are enough sequences."""
        return len(self.rows) >= self.wanted

    def put(self, samples: Iterable[Sample], encoder: ItemEncoder) -> None:
        """Add samples; sequences are closed as they fill up."""
        for sample in samples:
            self.hashes[document_hash(sample.key)] = None
            self.waiting += items_of(sample, encoder, self.groups)
            while len(self.waiting) > WAITING and not self.full:
                self.close_row()

    def close_row(self) -> None:
        """Fill one sequence with items that wait, the first of them and then the longest that fit."""
        row: list[Item] = [self.waiting.pop(0)]
        room = self.length - len(row[0].tokens)
        while True:
            fitting = [item for item in self.waiting if len(item.tokens) <= room]
            if not fitting:
                break
            longest = max(fitting, key=lambda item: len(item.tokens))
            self.waiting.remove(longest)
            row.append(longest)
            room -= len(longest.tokens)
        # The rest is the beginning of some item: of one that waits, or of the sequence's own first one.
        self.rows.append(_closed(row, room, (self.waiting or row)[0]))
        self.placed += row

    def finish(self) -> None:
        """Fill the last sequences from the items that are left."""
        while self.waiting and not self.full:
            self.close_row()

    def sequences(self, source: str) -> TokenSequences:
        """The sequences, [B, T], with the labels of their items."""
        tokens = torch.tensor(self.rows, dtype=torch.int64).view(-1, self.length)
        return TokenSequences(tokens, tuple(self.hashes), source, labels_of(self.placed))


def items_of(sample: Sample, encoder: ItemEncoder, groups: dict[str, int]) -> list[Item]:
    """The inputs of a sample: its text or pair, and its query if this is new and an input of its own.

    `groups` are the numbers of the queries so far, to which that of the sample is added.
    """
    label = NO_LABEL if sample.label is None else sample.label
    known = sample.key in groups
    group = groups.setdefault(sample.key, len(groups))
    text = Item(encoder.text(sample), group, TEXT_ROLE, label)
    if encoder.apart and sample.query is not None and not known:
        return [Item(encoder.query(sample), group, QUERY_ROLE, NO_LABEL), text]
    return [text]


def labels_of(items: Sequence[Item]) -> ItemLabels:
    """What is known of items, in their order."""
    return ItemLabels(
        group=torch.tensor([item.group for item in items], dtype=torch.int64),
        role=torch.tensor([item.role for item in items], dtype=torch.int64),
        label=torch.tensor([item.label for item in items], dtype=torch.float64),
    )


def in_order(items: Iterable[Item], length: int) -> torch.Tensor:
    """Sequences that hold all items in their order, [B, T] int64, with T = `length`; no item is longer."""
    rows: list[list[int]] = []
    row: list[Item] = []
    room = length
    for item in items:
        if row and len(item.tokens) > room:
            rows.append(_closed(row, room, row[0]))
            row, room = [], length
        row.append(item)
        room -= len(item.tokens)
    rows += [_closed(row, room, row[0])] if row else []
    return torch.tensor(rows, dtype=torch.int64).view(-1, length)


def _closed(row: Sequence[Item], room: int, filler: Item) -> list[int]:
    """A sequence of items; the beginning of another one fills the room that is left."""
    rest = (filler.tokens * (room // len(filler.tokens) + 1))[:room]
    return sequence_of([item.tokens for item in row], incomplete=rest)


def prepare_items(
    samples: Distinct,
    shares: Mapping[str, int],
    encoder: ItemEncoder,
    seed: int,
    source: str,
    say: Callable[[str], object],
) -> dict[str, TokenSequences]:
    """Read samples and divide them: sequences for each purpose.

    `shares` are tokens by purpose. Raises DataError if there isn't a sequence for each.
    """
    length = encoder.length
    fillings = {purpose: Filling(-(-shares[purpose] // length), length) for purpose in PURPOSES if shares.get(purpose)}
    spare: dict[str, list[Sample]] = {}
    for sample in samples:
        key = document_hash(sample.key)
        filling = fillings[purpose_of(key, shares, seed)]
        if not filling.full or key in filling.hashes:
            filling.put([sample], encoder)
        else:
            spare.setdefault(key, []).append(sample)
            if all(other.full for other in fillings.values()):
                break
    for filling in fillings.values():
        filling.finish()
    surplus = sorted(spare.items())
    for filling in fillings.values():
        while not filling.full and surplus:
            filling.put(surplus.pop(0)[1], encoder)
        filling.finish()
    lacking = {purpose: filling for purpose, filling in fillings.items() if not filling.full}
    empty = [purpose for purpose, filling in lacking.items() if not filling.rows]
    if empty:
        raise DataError(
            f"text.source {source} has {samples.count:,} texts or pairs, and none is left for {', '.join(empty)} "
            "(those with the same query have one purpose): give more, or lower text.calibration_tokens"
        )
    if lacking:
        parts = ", ".join(f"{purpose} {len(filling.rows) * length:,}" for purpose, filling in fillings.items())
        say(
            f"text: {source} is short. The recipe asks for {sum(shares.values()):,} tokens and gets "
            f"{sum(len(filling.rows) for filling in fillings.values()) * length:,} ({parts}). More text makes a better "
            "model."
        )
    return {purpose: filling.sequences(source) for purpose, filling in fillings.items()}
