"""KL of candidates to the dense model, evaluated from their first changed block on.

All candidates of a round go through the blocks together: a block's weights are there once, and every candidate that has
reached it runs with its own modules. A candidate shares everything before its first changed block with the base, whose
stream it joins there. The base's block inputs are kept where there is room. All candidates see the same tokens, so
their differences are paired. The loss of a candidate on each sequence is stored; a later round on more text only runs
the new text. Several processes share the candidates of a round and their text.

A loss depends only on the candidate and the sequences, never on the base, the process or the order of evaluations; up
to rounding, since several processes run fewer sequences at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from darwinlm.runtime import parallel
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import NumericsError, TimeLimitError
from darwinlm.runtime.memory import Bounded, memory_of
from darwinlm.search.dense_side import DenseStream, ExpectedRows, LinearHead
from darwinlm.search.modules import PlacedModules
from darwinlm.streaming.hidden import HiddenMemory, HiddenStates
from darwinlm.units.space import Allocation

CPU_TOKENS = 1024
"""Maximum number of tokens in a forward pass on a CPU, so that the residual stream stays in its caches."""

Window = tuple[int, int]
"""Range of sequences on which candidates are compared, or a piece of it for one forward pass: first index, end."""


@dataclass
class Clock:
    """Wall-clock time of a search in seconds, with those `before` an interruption, and its limit."""

    limit: float = math.inf
    before: float = 0.0
    begun: float = field(default_factory=working_time)

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return self.before + working_time() - self.begun

    @property
    def left(self) -> float:
        """Seconds left, negative after the limit."""
        return self.limit - self.seconds

    def check(self) -> None:
        """Raise TimeLimitError after the limit."""
        if self.left < 0:
            raise TimeLimitError("the search has used its time")


@dataclass
class Walker:
    """A candidate on its way through the blocks, from the block `first` on.

    It has a stream for each piece of text, and arguments of every block for it.
    """

    allocation: Allocation
    first: int
    pieces: list[Window]
    arguments: list[list[dict[str, Any]]]
    streams: HiddenStates = field(init=False)


class Fitness:
    """KL(dense ‖ candidate) in nats per token.

    The fitness text is [n, t]; streams of candidates may go where `memory` says.

    Attributes:
        dense: The dense model's stream after the last block, [n, t, m].
        evaluations: Number of evaluations of a candidate.
        clock: Time limit that stops an evaluation, once there is a first result.
    """

    def __init__(
        self, placed: PlacedModules, tokens: Tensor, *, batch_tokens: int, memory: HiddenMemory | None = None
    ) -> None:
        self.placed = placed
        self.memory = memory
        self.decoder = placed.decoder
        on_cpu = self.decoder.device.type == "cpu"
        self.tokens = tokens
        self.n_sequences, self.sequence_length = tokens.shape
        self.evaluations = 0
        self.clock = Clock()
        at_once = (min(batch_tokens, CPU_TOKENS) if on_cpu else batch_tokens) // parallel.size()
        self._batch_sequences = max(1, at_once // self.sequence_length)
        self._known: dict[Allocation, dict[int, float]] = {}
        self._sides: list[ExpectedRows | DenseStream] = []
        self.dense: Tensor
        self._base: Allocation | None = None
        self._room = memory_of(self.decoder.device)
        self._inputs: Bounded[tuple[Window, int], Tensor] = self._room.watch(
            Bounded(lambda hidden: hidden.nbytes, partial(self._room.room, "inputs"), scanned=True)
        )
        self._inputs.reserve(0)
        self._prepare_dense()

    @torch.no_grad()
    def _prepare_dense(self) -> None:
        streams = self._through(list(self.pieces(0, self.n_sequences)))
        self.dense = torch.cat(list(streams))
        with self.decoder.with_head():
            head = LinearHead.of(self.decoder)
            for stream in streams:
                hidden = stream.flatten(0, 1)
                if head is None:
                    self._sides.append(DenseStream(self.decoder, hidden))
                else:
                    self._sides.append(ExpectedRows(self.decoder, head, hidden))

    def set_base(self, allocation: Allocation | None) -> None:
        """Keep the block inputs of this allocation, so that candidates near it are cheap; None keeps nothing."""
        if allocation != self._base:
            self._base = allocation
            self._inputs.clear()

    def pieces(self, begin: int, end: int) -> Iterator[Window]:
        """Parts of a range for one forward pass each, with fixed borders."""
        while begin < end:
            border = min((begin // self._batch_sequences + 1) * self._batch_sequences, end)
            yield begin, border
            begin = border

    def sequences(self, n_tokens: int) -> int:
        """Number of whole sequences with `n_tokens` tokens, limited to the text."""
        return min(-(-n_tokens // self.sequence_length), self.n_sequences)

    def windows(self, n_tokens: int) -> list[Window]:
        """Windows of whole sequences with `n_tokens` tokens; the last one may be longer."""
        length = self.sequences(n_tokens)
        starts = range(0, max(self.n_sequences - length, 0) + 1, length)
        return [(start, self.n_sequences if start == starts[-1] else start + length) for start in starts]

    def kl(self, allocation: Allocation, n_tokens: int) -> float:
        """Mean KL over the first `n_tokens` fitness tokens, rounded up to whole sequences.

        Raises NumericsError if the candidate's logits aren't finite.
        """
        mean = self.kls([allocation], n_tokens)[0]
        if math.isinf(mean):
            raise NumericsError(
                f"the candidate {allocation} gives values that aren't finite: try compute.dtype=float32"
            )
        return mean

    def kls(self, allocations: Sequence[Allocation], n_tokens: int) -> list[float]:
        """Mean KL of each candidate over the first tokens; see `kl_on`."""
        return self.kl_on(allocations, (0, self.sequences(n_tokens)))

    def kl_on(self, allocations: Sequence[Allocation], window: Window) -> list[float]:
        """Mean KL of each candidate over a window; infinite where its logits aren't finite.

        Raises TimeLimitError if the clock's limit has passed.
        """
        wanted = range(*window)
        missing = [(each, piece) for each in dict.fromkeys(allocations) for piece in self._missing(each, window)]
        with parallel.agree():
            measured = self._room.survive(self._evaluate, parallel.portion(missing))
        for part in parallel.gather(measured):
            for each, losses in part.items():
                self._known.setdefault(each, {}).update(losses)
        self.evaluations += len({each for each, _ in missing})
        return [_mean([self._known[each][number] for number in wanted], self.sequence_length) for each in allocations]

    @torch.no_grad()
    def kl_in_place(self, n_tokens: int) -> float:
        """Mean KL of the decoder's current modules, in this process; infinite where its logits aren't finite."""
        pieces = list(self.pieces(0, self.sequences(n_tokens)))
        found = zip(pieces, self._through(pieces), strict=True)
        return _mean([loss for piece, hidden in found for loss in self._losses(piece, hidden)], self.sequence_length)

    def losses(self, allocation: Allocation) -> list[float]:
        """Summed KL of a candidate for each sequence, up to the first one that wasn't measured."""
        known = self._known.get(allocation, {})
        return [known[number] for number in itertools.takewhile(known.__contains__, itertools.count())]

    def remember(self, allocation: Allocation, losses: Sequence[float]) -> None:
        """Store losses that an earlier run of the same search measured."""
        self._known[allocation] = dict(enumerate(losses))

    @torch.no_grad()
    def _evaluate(self, missing: Sequence[tuple[Allocation, Window]]) -> dict[Allocation, dict[int, float]]:
        """Losses of candidates on some sequences, by candidate and number of the sequence."""
        by_candidate: dict[Allocation, list[Window]] = {}
        for each, piece in missing:
            by_candidate.setdefault(each, []).append(piece)
        walkers = [
            Walker(each, self._first_changed(each), pieces, [self._arguments(piece) for piece in pieces])
            for each, pieces in by_candidate.items()
        ]
        measured: dict[Allocation, dict[int, float]] = {}
        if walkers:
            self._walk(walkers)
            with self.decoder.with_head():
                for walker in walkers:
                    found = measured[walker.allocation] = {}
                    for piece, hidden in zip(walker.pieces, walker.streams, strict=True):
                        self.clock.check()
                        found |= zip(range(*piece), self._losses(piece, hidden), strict=True)
        return measured

    def _missing(self, allocation: Allocation, window: Window) -> Iterator[Window]:
        """Parts of a window that weren't evaluated for a candidate."""
        known = self._known.get(allocation, {})
        for piece in self.pieces(*window):
            unknown = [number for number in range(*piece) if number not in known]
            if unknown:
                yield unknown[0], unknown[-1] + 1

    def _walk(self, walkers: Sequence[Walker]) -> None:
        """Move candidates through the blocks together; each joins the base's stream at its first block."""
        first: dict[Window, int] = {}  # block at which the first candidate joins the base, and the last one
        last: dict[Window, int] = {}
        for each in walkers:
            for piece in each.pieces:
                first[piece] = min(first.get(piece, each.first), each.first)
                last[piece] = max(last.get(piece, 0), each.first)
        begin = {piece: self._deepest_input(piece, first[piece]) for piece in first}
        base = {piece: self._input(piece, block) for piece, block in begin.items()}
        arguments = {piece: self._arguments(piece) for piece in base}
        for block in self.decoder.walk(range(min(begin.values()), len(self.decoder.blocks))):
            with self.placed.visiting(block):
                for each in [each for each in walkers if each.first == block]:
                    elements = sum(base[piece].numel() for piece in each.pieces)
                    each.streams = HiddenStates((base[piece] for piece in each.pieces), elements, self.memory)
                for piece in [piece for piece in base if begin[piece] <= block]:
                    hidden = base.pop(piece)
                    if last[piece] > block:
                        base[piece] = self._behind_base(block, piece, hidden, arguments[piece][block])
                # Candidates with the same modules follow each other, so that those are placed once.
                there = [each for each in walkers if each.first <= block]
                for each in sorted(there, key=lambda each: self.placed.levels(block, each.allocation)):
                    self.placed.put(block, each.allocation)
                    for number in range(len(each.pieces)):
                        self.clock.check()
                        given = each.arguments[number][block]
                        each.streams[number] = self.decoder.run_block(block, each.streams[number], given)

    def _through(self, pieces: Sequence[Window]) -> HiddenStates:
        """Streams after the last block, of the modules that are in the decoder."""
        return self.decoder.through([self.tokens[slice(*piece)] for piece in pieces], memory=self.memory)

    def _arguments(self, piece: Window) -> list[dict[str, Any]]:
        return self.decoder.block_arguments(self.tokens[slice(*piece)])

    def _deepest_input(self, piece: Window, most: int) -> int:
        """The last block up to `most` whose input is kept for the base; 0 if none is."""
        return next((block for block in range(most, 0, -1) if self._inputs.get((piece, block)) is not None), 0)

    def _input(self, piece: Window, block: int) -> Tensor:
        """Kept input of a block; that of the first block is embedded again."""
        kept = self._inputs.get((piece, block))
        return self.decoder.embed(self.tokens[slice(*piece)]) if kept is None else kept

    def _behind_base(self, block: int, piece: Window, hidden: Tensor, arguments: dict[str, Any]) -> Tensor:
        """The base's stream behind a block, which is kept if there is room."""
        kept = self._inputs.get((piece, block + 1))
        if kept is not None:
            return kept
        assert self._base is not None
        self.placed.put(block, self._base)
        behind = self.decoder.run_block(block, hidden, arguments)
        self._inputs.put((piece, block + 1), behind)
        return behind

    def _losses(self, piece: Window, hidden: Tensor) -> list[float]:
        """Losses of the sequences of a piece, from the stream after the last block."""
        start = piece[0] % self._batch_sequences * self.sequence_length
        divergence = self._sides[piece[0] // self._batch_sequences].kl(hidden.flatten(0, 1), start)
        losses = exact(divergence).view(-1, self.sequence_length).sum(1, dtype=torch.float64).tolist()
        return [loss if math.isfinite(loss) else math.inf for loss in losses]

    def _first_changed(self, allocation: Allocation) -> int:
        if self._base is None:
            return 0
        last = min(self.decoder.restart, len(self.decoder.blocks) - 1)
        modules = self.placed.space.modules
        changed = [m.block for m, a, b in zip(modules, allocation, self._base, strict=True) if a != b]
        return min([*changed, last])


def _mean(losses: Sequence[float], sequence_length: int) -> float:
    return max(math.fsum(losses) / (len(losses) * sequence_length), 0.0)
