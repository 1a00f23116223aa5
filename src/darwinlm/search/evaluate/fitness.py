"""KL of candidates to the dense model, evaluated from their first changed block on.

The block inputs of one allocation, the base, are kept. A candidate shares everything before its first changed block
with the base, so only the rest is run. The base is run only as far as the current candidates share it. All candidates
see the same tokens, so their differences are paired. The loss of a candidate on each sequence is stored; a later round
on more text only runs the new text. Several processes share the candidates of a round.

A loss depends only on the candidate and the sequences, never on the base, the process or the order of evaluations.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import NumericsError, TimeLimitError
from darwinlm.search.evaluate.dense_side import Distributions, ExpectedRows, LinearHead
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.problem.space import Allocation

CPU_TOKENS = 1024
"""Maximum number of tokens in a forward pass on a CPU, so that the residual stream stays in its caches."""

Window = tuple[int, int]
"""Range of sequences on which candidates are compared, or a piece of it for one forward pass: first index, end."""


@dataclass
class Clock:
    """Wall-clock time of a search in seconds, with those `before` an interruption, and its limit."""

    limit: float = math.inf
    before: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return self.before + time.monotonic() - self.begun

    @property
    def left(self) -> float:
        """Seconds left, negative after the limit."""
        return self.limit - self.seconds

    def check(self) -> None:
        """Raise TimeLimitError after the limit."""
        if self.left < 0:
            raise TimeLimitError("the search has used its time")


class Fitness:
    """KL(dense ‖ candidate) in nats per token.

    The fitness text is [n, t].

    Attributes:
        dense: The dense model's stream after the last block, [n, t, m].
        evaluations: Number of evaluations of a candidate.
        clock: Time limit that stops an evaluation, once there is a first result.
    """

    def __init__(self, placed: PlacedModules, tokens: Tensor, *, batch_tokens: int) -> None:
        self.placed = placed
        self.decoder = placed.decoder
        on_cpu = self.decoder.device.type == "cpu"
        self.tokens = tokens
        self.n_sequences, self.sequence_length = tokens.shape
        self.evaluations = 0
        self.clock = Clock()
        self._batch_sequences = max(
            1, (min(batch_tokens, CPU_TOKENS) if on_cpu else batch_tokens) // self.sequence_length
        )
        self._known: dict[Allocation, dict[int, float]] = {}
        self._sides: list[ExpectedRows | Distributions] = []
        self.dense: Tensor
        self._base: Allocation | None = None
        self._inputs: dict[Window, list[Tensor]] = {}
        self._prepare_dense()

    @torch.no_grad()
    def _prepare_dense(self) -> None:
        self.placed.apply(self.placed.space.dense)
        head = LinearHead.of(self.decoder)
        streams = [self._last(piece, self._base_inputs(piece)) for piece in self._pieces(0, self.n_sequences)]
        for stream in streams:
            hidden = stream.flatten(0, 1)
            if head is None:
                self._sides.append(Distributions(self.decoder, hidden))
            else:
                self._sides.append(ExpectedRows(self.decoder, head, hidden))
        self.dense = torch.cat(streams)

    def set_base(self, allocation: Allocation | None) -> None:
        """Keep the block inputs of this allocation, so that candidates near it are cheap; None keeps nothing."""
        if allocation != self._base:
            self._base = allocation
            # The input of the first block is the same for all.
            self._inputs = {piece: inputs[:1] for piece, inputs in self._inputs.items()}

    def _pieces(self, begin: int, end: int) -> Iterator[Window]:
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
        missing = [each for each in dict.fromkeys(allocations) if not self._known.get(each, {}).keys() >= {*wanted}]
        with parallel.agree():
            share = parallel.mine(missing)
            self._run_base(share, window)
            measured = {each: self._evaluate(each, window) for each in share}
        for part in parallel.gather(measured):
            for each, losses in part.items():
                self._known.setdefault(each, {}).update(losses)
        self.evaluations += len(missing)
        return [_mean([self._known[each][number] for number in wanted], self.sequence_length) for each in allocations]

    @torch.no_grad()
    def kl_in_place(self, n_tokens: int) -> float:
        """Mean KL of the decoder's current modules, in this process; infinite where its logits aren't finite."""
        losses = [
            loss
            for piece in self._pieces(0, self.sequences(n_tokens))
            for loss in self._run(piece, self._base_inputs(piece))
        ]
        return _mean(losses, self.sequence_length)

    def losses(self, allocation: Allocation) -> list[float]:
        """Summed KL of a candidate for each sequence, up to the first one that wasn't measured."""
        known = self._known.get(allocation, {})
        return [known[number] for number in itertools.takewhile(known.__contains__, itertools.count())]

    def remember(self, allocation: Allocation, losses: Sequence[float]) -> None:
        """Store losses that an earlier run of the same search measured."""
        self._known[allocation] = dict(enumerate(losses))

    @torch.no_grad()
    def _run_base(self, candidates: Sequence[Allocation], window: Window) -> None:
        """Compute the block inputs of the base that any of these candidates shares."""
        shared: dict[Window, int] = {}
        for each in candidates:
            for piece in self._missing(each, window):
                shared[piece] = max(shared.get(piece, 0), self._first_changed(each))
        for piece, first in shared.items():
            inputs = self._base_inputs(piece)
            if len(inputs) <= first:
                assert self._base is not None
                self.placed.apply(self._base)
                inputs += self._through(piece, inputs[-1], len(inputs) - 1, first)

    @torch.no_grad()
    def _evaluate(self, allocation: Allocation, window: Window) -> dict[int, float]:
        """Losses of the window's sequences that aren't known yet."""
        self.placed.apply(allocation)
        first = self._first_changed(allocation)
        by_sequence: dict[int, float] = {}
        for piece in self._missing(allocation, window):
            self.clock.check()
            losses = self._run(piece, self._base_inputs(piece)[: first + 1])
            by_sequence |= zip(range(*piece), losses, strict=True)
        return by_sequence

    def _missing(self, allocation: Allocation, window: Window) -> Iterator[Window]:
        """Parts of a window that weren't evaluated for a candidate."""
        known = self._known.get(allocation, {})
        for piece in self._pieces(*window):
            unknown = [number for number in range(*piece) if number not in known]
            if unknown:
                yield unknown[0], unknown[-1] + 1

    def _base_inputs(self, piece: Window) -> list[Tensor]:
        """Kept block inputs of the base on a piece; at least that of the first block."""
        if piece not in self._inputs:
            self._inputs[piece] = [self.decoder.embed(self.tokens[slice(*piece)])]
        return self._inputs[piece]

    def _through(self, piece: Window, hidden: Tensor, first: int, end: int) -> Iterator[Tensor]:
        """The residual stream after each block from `first` up to `end`."""
        arguments = self.decoder.block_arguments(self.tokens[slice(*piece)])
        for block in range(first, end):
            hidden = self.decoder.run_block(block, hidden, arguments[block])
            yield hidden

    def _last(self, piece: Window, inputs: Sequence[Tensor]) -> Tensor:
        """The stream after the last block, from the last of the given block inputs on."""
        hidden = inputs[-1]
        for behind in self._through(piece, hidden, len(inputs) - 1, len(self.decoder.blocks)):
            hidden = behind
        return hidden

    def _run(self, piece: Window, inputs: Sequence[Tensor]) -> list[float]:
        """Losses of the sequences of a piece, from the last of the given block inputs on."""
        start = piece[0] % self._batch_sequences * self.sequence_length
        divergence = self._sides[piece[0] // self._batch_sequences].kl(self._last(piece, inputs).flatten(0, 1), start)
        losses = divergence.view(-1, self.sequence_length).sum(1, dtype=torch.float64).tolist()
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
