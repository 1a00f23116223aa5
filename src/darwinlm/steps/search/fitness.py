"""KL of candidates to the dense model.

All candidates of a round go through the blocks together: a block's weights are there once, and every candidate runs
with its own modules. All see the same tokens, so their differences are paired. The loss of a candidate on each sequence
is stored; a later round on more text only runs the new text. Several processes share the candidates of a round and
their text.

A loss depends only on the candidate and the sequences, never on the process or the order of evaluations; up to
rounding, since several processes run fewer sequences at once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from darwinlm.model.objective.next_token import LANGUAGE
from darwinlm.model.objective.objective import Objective, Window
from darwinlm.model.units.space import Allocation
from darwinlm.model.walk.decoder import BlockArguments
from darwinlm.model.walk.hidden import HiddenMemory, HiddenStates
from darwinlm.runtime import parallel
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.errors import NumericsError, TimeLimitError
from darwinlm.runtime.memory import memory_of
from darwinlm.steps.search.module_cache import PlacedModules


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


class Fitness:
    """Distance of candidates to the dense model by an objective: of a language model KL(dense ‖ candidate), per token.

    The fitness text is [n, t]; streams of candidates may go where `memory` says.

    Attributes:
        reference: What the dense model gives, with its stream after the last block, [n, t, m].
        evaluations: Number of evaluations of a candidate.
        clock: Time limit that stops an evaluation, once there is a first result.
    """

    def __init__(
        self,
        placed: PlacedModules,
        tokens: Tensor,
        objective: Objective = LANGUAGE,
        *,
        batch_tokens: int,
        memory: HiddenMemory | None = None,
    ) -> None:
        self.placed = placed
        self.objective = objective
        self.memory = memory
        self.decoder = placed.decoder
        self.tokens = tokens
        self.n_sequences, self.sequence_length = tokens.shape
        self.evaluations = 0
        self.clock = Clock()
        self._batch_sequences = max(1, batch_tokens // parallel.size() // self.sequence_length)
        self._known: dict[Allocation, dict[int, float]] = {}
        self._counts: list[int] = objective.counts(tokens).tolist()
        batches = list(self.pieces(0, self.n_sequences))
        with parallel.agree():
            streams = self._dense_streams(batches)
            with torch.no_grad(), self.decoder.with_head():
                texts = [tokens[slice(*batch)] for batch in batches]
                self.reference = objective.reference(self.decoder, streams, texts)

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
        distinct = dict.fromkeys(allocations)
        missing = [(candidate, piece) for candidate in distinct for piece in self._missing(candidate, window)]
        measured = memory_of(self.decoder.device).survive(self._evaluate, missing)
        for part in parallel.gather(measured):
            for candidate, losses in part.items():
                self._known.setdefault(candidate, {}).update(losses)
        self.evaluations += len({candidate for candidate, _ in missing})
        known = [self._known[candidate] for candidate in allocations]
        count = self.count(window)
        return [_mean([losses[number] for number in wanted], count) for losses in known]

    def count(self, window: Window) -> int:
        """Number of things compared in a window: of a language model, tokens."""
        return sum(self._counts[slice(*window)])

    @torch.no_grad()
    def kl_in_place(self, n_tokens: int) -> float:
        """Mean KL of the decoder's current modules, in this process; infinite where its logits aren't finite."""
        pieces = list(self.pieces(0, self.sequences(n_tokens)))
        ends = zip(pieces, self._through(pieces), strict=True)
        losses = [loss for piece, end in ends for loss in self._losses(piece, [end])[0]]
        return _mean(losses, self.count((0, len(losses))))

    def losses(self, allocation: Allocation) -> list[float]:
        """Summed KL of a candidate for each sequence, up to the first one that wasn't measured."""
        known = self._known.get(allocation, {})
        return [known[number] for number in itertools.takewhile(known.__contains__, itertools.count())]

    def remember(self, allocation: Allocation, losses: Sequence[float]) -> None:
        """Store losses that an earlier run of the same search measured."""
        self._known[allocation] = dict(enumerate(losses))

    @torch.no_grad()
    def _evaluate(self, missing: Sequence[tuple[Allocation, Window]]) -> dict[Allocation, dict[int, float]]:
        """Losses of candidates on this process's portion of what is missing, by candidate and number of the sequence.

        A process without a portion takes part in a walk whose blocks it shares.
        """
        own, everyone = parallel.portion(missing), dict.fromkeys(candidate for candidate, _ in missing)
        if not (own if self.decoder.owner is None else missing):
            return {}
        by_candidate: dict[Allocation, list[Window]] = {}
        for candidate, piece in own:
            by_candidate.setdefault(candidate, []).append(piece)
        text = {piece: self.tokens[slice(*piece)] for _, piece in own}
        embedded = {piece: self.decoder.embed(tokens) for piece, tokens in text.items()}
        streams: dict[Allocation, HiddenStates] = {}
        arguments: dict[Allocation, list[list[BlockArguments]]] = {}
        for candidate, pieces in by_candidate.items():
            elements = sum(embedded[piece].numel() for piece in pieces)
            streams[candidate] = HiddenStates((embedded[piece] for piece in pieces), elements, self.memory)
            arguments[candidate] = [self.decoder.block_arguments(text[piece]) for piece in pieces]
        del embedded
        self._walk(streams, arguments, everyone)
        measured: dict[Allocation, dict[int, float]] = {candidate: {} for candidate in by_candidate}
        with self.decoder.with_head():
            for piece in text:
                self.clock.check()
                candidates = [candidate for candidate, pieces in by_candidate.items() if piece in pieces]
                ends = [streams[candidate][by_candidate[candidate].index(piece)] for candidate in candidates]
                for candidate, losses in zip(candidates, self._losses(piece, ends), strict=True):
                    measured[candidate] |= zip(range(*piece), losses, strict=True)
        return measured

    def _walk(
        self,
        streams: Mapping[Allocation, HiddenStates],
        arguments: Mapping[Allocation, list[list[BlockArguments]]],
        everyone: Iterable[Allocation],
    ) -> None:
        """Move candidates through the blocks together; `everyone` are those of all processes."""
        self.placed.begin()
        for block in self.decoder.walk(range(len(self.decoder.blocks))):
            with self.placed.visiting(block):
                self.placed.share(block, everyone, streams)
                # Candidates with the same modules follow each other, so that those are placed once.
                for candidate in sorted(streams, key=lambda candidate: self.placed.levels(block, candidate)):
                    self.placed.put(block, candidate)
                    stream = streams[candidate]
                    for number, given in enumerate(arguments[candidate]):
                        self.clock.check()
                        stream[number] = self.decoder.run_block(block, stream[number], given[block])

    def _missing(self, allocation: Allocation, window: Window) -> Iterator[Window]:
        """Parts of a window that weren't evaluated for a candidate."""
        known = self._known.get(allocation, {})
        for piece in self.pieces(*window):
            unknown = [number for number in range(*piece) if number not in known]
            if unknown:
                yield unknown[0], unknown[-1] + 1

    @torch.no_grad()
    def _dense_streams(self, pieces: Sequence[Window]) -> HiddenStates:
        """Streams of the dense model after the last block; each process computes its share and sends it to the others.

        Inside `parallel.agree`.
        """
        own = self._through(parallel.mine(pieces))
        if parallel.size() == 1:
            return own
        parallel.meet(None)
        elements = self.tokens.numel() * int(self.decoder.model.config.hidden_size)
        return HiddenStates(self._sent(pieces, iter(own)), elements, self.memory)

    def _sent(self, pieces: Sequence[Window], own: Iterator[Tensor]) -> Iterator[Tensor]:
        """The streams of all pieces in order, from those of this process and of the others."""
        for number, (begin, end) in enumerate(pieces):
            owner = parallel.owner(number)
            shape = (end - begin, self.sequence_length, int(self.decoder.model.config.hidden_size))
            mine = owner == parallel.place()
            stream = next(own) if mine else torch.empty(shape, dtype=self.decoder.dtype, device=self.decoder.device)
            yield parallel.send(stream.contiguous(), owner)

    def _through(self, pieces: Sequence[Window]) -> HiddenStates:
        """Streams after the last block, of the modules that are in the decoder."""
        return self.decoder.through([self.tokens[slice(*piece)] for piece in pieces], memory=self.memory)

    def _losses(self, piece: Window, ends: Sequence[Tensor]) -> list[list[float]]:
        """Losses of the sequences of a piece, for each candidate's stream after the last block."""
        losses: list[list[float]] = self.reference.losses(piece, ends).tolist()
        return [[loss if math.isfinite(loss) else math.inf for loss in row] for row in losses]


def _mean(losses: Sequence[float], count: int) -> float:
    return max(math.fsum(losses) / count, 0.0)
