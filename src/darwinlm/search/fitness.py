"""How far candidates stray from the dense model, evaluated from their first changed block on.

Block inputs of one allocation, the base, are kept. A candidate shares everything before its first changed block with
it, so only the rest is run. All candidates see the same tokens: differences between them are paired. What a candidate
lost on each sequence is remembered, so that a later round on more text runs only the text that is new. Several
processes share the candidates of a round.

A loss depends on the candidate, the base and the sequences alone, never on which process measured it or when.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from darwinlm import parallel
from darwinlm.errors import NumericsError
from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.search.bank import ModuleBank
from darwinlm.search.space import Allocation

HEAD_TOKENS = 512
"""Tokens whose logits are made at once: a vocabulary's worth of them for a whole batch would not stay in the caches."""


class Fitness:
    """KL(dense ‖ candidate) in nats per token.

    Args:
        bank: swaps candidates into the one model.
        tokens: [n, t] fitness text.
        batch_tokens: tokens in one forward pass.

    Attributes:
        evaluations: times that a candidate was run on some text.
    """

    def __init__(self, bank: ModuleBank, tokens: Tensor, *, batch_tokens: int) -> None:
        self.bank = bank
        self.decoder = bank.decoder
        rows = max(1, batch_tokens // tokens.shape[1])
        self.sequence_length = tokens.shape[1]
        self.batches = list(torch.split(tokens, rows))
        self.n_sequences = len(tokens)
        self.evaluations = 0
        self._rows = rows
        self._known: dict[Allocation, list[float]] = {}
        self._dense: list[DenseDistribution] = []
        self._base: Allocation | None = None
        self._base_rows = 0
        self._inputs: list[list[Tensor]] = []
        self._prepare_dense()

    @torch.no_grad()
    def _prepare_dense(self) -> None:
        self.bank.apply(self.bank.space.dense)
        for batch in self.batches:
            self._dense.append(DenseDistribution(self.decoder.logits(batch).flatten(0, 1)))

    @torch.no_grad()
    def set_base(self, allocation: Allocation | None, n_tokens: int | None = None) -> None:
        """Keep the block inputs of this allocation; candidates near it are then cheap.

        Args:
            allocation: the base; None forgets the present one.
            n_tokens: of the text on which they are kept; None keeps them on all of it.
        """
        rows = self.n_sequences if n_tokens is None else self.sequences(n_tokens)
        if allocation == self._base and rows == self._base_rows:
            return
        self._base, self._base_rows, self._inputs = allocation, rows, []
        if allocation is None:
            return
        self.bank.apply(allocation)
        for start, batch in zip(range(0, rows, self._rows), self.batches, strict=False):
            part = batch[: rows - start]
            arguments = self.decoder.block_arguments(part)
            hidden = self.decoder.embed(part)
            inputs = []
            for block in range(len(self.decoder.blocks)):
                inputs.append(hidden)
                hidden = self.decoder.run_block(block, hidden, arguments[block])
            self._inputs.append(inputs)

    def sequences(self, n_tokens: int) -> int:
        """Whole sequences that hold so many tokens, as far as there are any."""
        return min(-(-n_tokens // self.sequence_length), self.n_sequences)

    def kl(self, allocation: Allocation, n_tokens: int) -> float:
        """Mean KL over the first `n_tokens` fitness tokens, rounded up to whole sequences.

        Raises:
            NumericsError: the candidate's logits aren't finite.
        """
        mean = self.kls([allocation], n_tokens)[0]
        if math.isinf(mean):
            raise NumericsError(
                f"the candidate {allocation} gives values that aren't finite: try compute.dtype=float32 or more damping"
            )
        return mean

    def kls(self, allocations: Sequence[Allocation], n_tokens: int) -> list[float]:
        """Mean KL of each candidate; infinite where its logits aren't finite."""
        wanted = self.sequences(n_tokens)
        missing = [each for each in dict.fromkeys(allocations) if len(self._known.get(each, ())) < wanted]
        with parallel.agree():
            found = {each: self._evaluate(each, wanted) for each in parallel.mine(missing)}
        for part in parallel.gather(found):
            for each, losses in part.items():
                self._known[each] = [*self._known.get(each, ()), *losses]
        self.evaluations += len(missing)
        return [_mean(self._known[each][:wanted], self.sequence_length) for each in allocations]

    @torch.no_grad()
    def kl_in_place(self, n_tokens: int) -> float:
        """Mean KL of whatever the decoder holds now, in this process; infinite where its logits aren't finite."""
        wanted = self.sequences(n_tokens)
        losses: list[float] = []
        for index, batch in enumerate(self.batches):
            end = min(wanted - index * self._rows, len(batch))
            if end > 0:
                losses += self._run(index, 0, end, 0)
        return _mean(losses, self.sequence_length)

    def losses(self, allocation: Allocation) -> list[float]:
        """What was measured of a candidate: the sum of KL over each sequence, in the order of the text."""
        return list(self._known.get(allocation, ()))

    def remember(self, allocation: Allocation, losses: Sequence[float]) -> None:
        """Take the losses from an earlier run of the same search as measured."""
        self._known[allocation] = list(losses)

    @torch.no_grad()
    def _evaluate(self, allocation: Allocation, wanted: int) -> list[float]:
        """Losses of the sequences that aren't known yet."""
        self.bank.apply(allocation)
        first = self._first_changed(allocation)
        known = len(self._known.get(allocation, ()))
        found: list[float] = []
        for index, batch in enumerate(self.batches):
            start = index * self._rows
            low, high = max(known - start, 0), min(wanted - start, len(batch))
            kept = min(max(self._base_rows - start, 0), len(batch)) if first else 0
            for begin, end, block in ((low, min(high, kept), first), (max(low, kept), high, 0)):
                if begin < end:
                    found += self._run(index, begin, end, block)
        return found

    def _run(self, index: int, begin: int, end: int, first: int) -> list[float]:
        """Losses of some sequences of a batch, from block `first` on."""
        rows = self.batches[index][begin:end]
        arguments = self.decoder.block_arguments(rows)
        hidden = self._inputs[index][first][begin:end] if first else self.decoder.embed(rows)
        count = len(self.decoder.blocks)
        for block in range(first, count):
            hidden = self.decoder.run_block(block, hidden, arguments[block])
        found: list[float] = []
        step = max(1, HEAD_TOKENS // self.sequence_length)
        for at in range(0, len(rows), step):
            logits = self.decoder.logits(rows[at : at + step], hidden[at : at + step], count)
            divergence = self._dense[index].kl(logits.flatten(0, 1), (begin + at) * self.sequence_length)
            found += divergence.view(-1, self.sequence_length).sum(1, dtype=torch.float64).tolist()
        return [loss if math.isfinite(loss) else math.inf for loss in found]

    def _first_changed(self, allocation: Allocation) -> int:
        if self._base is None:
            return 0
        modules = self.bank.space.modules
        changed = [m.block for m, a, b in zip(modules, allocation, self._base, strict=True) if a != b]
        return min(changed) if changed else len(self.decoder.blocks) - 1


def _mean(losses: Sequence[float], sequence_length: int) -> float:
    return max(math.fsum(losses) / (len(losses) * sequence_length), 0.0)
