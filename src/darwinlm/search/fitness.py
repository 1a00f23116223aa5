"""How far a candidate strays from the dense model, evaluated from its first changed block on.

Block inputs of one allocation, the base, are kept. A candidate shares everything before its first changed block with
it, so only the rest is run. All candidates see the same tokens: differences between them are paired.
"""

from __future__ import annotations

import torch
from torch import Tensor

from darwinlm.errors import NumericsError
from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.search.bank import ModuleBank
from darwinlm.search.space import Allocation


class Fitness:
    """KL(dense ‖ candidate) in nats per token.

    Args:
        bank: swaps candidates into the one model.
        tokens: [n, t] fitness text.
        batch_tokens: tokens in one forward pass.
    """

    def __init__(self, bank: ModuleBank, tokens: Tensor, *, batch_tokens: int) -> None:
        self.bank = bank
        self.decoder = bank.decoder
        rows = max(1, batch_tokens // tokens.shape[1])
        self.sequence_length = tokens.shape[1]
        self.batches = list(torch.split(tokens, rows))
        self.memory: dict[tuple[Allocation, int], float] = {}
        self.evaluations = 0
        self._dense: list[DenseDistribution] = []
        self._base: Allocation | None = None
        self._inputs: list[list[Tensor]] = []
        self._prepare_dense()

    @torch.no_grad()
    def _prepare_dense(self) -> None:
        self.bank.apply(self.bank.space.dense)
        for batch in self.batches:
            self._dense.append(DenseDistribution(self.decoder.logits(batch).flatten(0, 1)))

    @torch.no_grad()
    def set_base(self, allocation: Allocation) -> None:
        """Keep the block inputs of this allocation; candidates near it are then cheap."""
        if allocation == self._base:
            return
        self.bank.apply(allocation)
        self._inputs = []
        for batch in self.batches:
            arguments = self.decoder.block_arguments(batch)
            hidden = self.decoder.embed(batch)
            inputs = []
            for block in range(len(self.decoder.blocks)):
                inputs.append(hidden)
                hidden = self.decoder.run_block(block, hidden, arguments[block])
            self._inputs.append(inputs)
        self._base = allocation

    def kl(self, allocation: Allocation, n_tokens: int) -> float:
        """Mean KL over the first `n_tokens` fitness tokens, rounded up to whole sequences.

        Raises:
            NumericsError: the candidate's logits aren't finite.
        """
        sequences = -(-n_tokens // self.sequence_length)
        key = (allocation, sequences)
        if key not in self.memory:
            self.memory[key] = self._evaluate(allocation, sequences)
            self.evaluations += 1
        return self.memory[key]

    def remember(self, allocation: Allocation, n_tokens: int, kl: float) -> None:
        """Take a loss from an earlier run of the same search as measured."""
        self.memory[allocation, -(-n_tokens // self.sequence_length)] = kl

    @torch.no_grad()
    def _evaluate(self, allocation: Allocation, sequences: int) -> float:
        first = self._first_changed(allocation)
        self.bank.apply(allocation)
        total, left = 0.0, sequences
        for index, batch in enumerate(self.batches):
            if left <= 0:
                break
            rows = batch[:left]
            left -= len(rows)
            hidden = self._inputs[index][first][: len(rows)] if first else None
            logits = self.decoder.logits(rows, hidden, first)
            total += float(self._dense[index].kl(logits.flatten(0, 1)).sum(dtype=torch.float64))
        mean = total / (min(sequences, sum(map(len, self.batches))) * self.sequence_length)
        if mean != mean or mean == float("inf"):  # noqa: PLR0124
            raise NumericsError(
                f"the candidate {allocation} gives values that aren't finite: try compute.dtype=float32 or more damping"
            )
        return max(mean, 0.0)

    def _first_changed(self, allocation: Allocation) -> int:
        if self._base is None:
            return 0
        modules = self.bank.space.modules
        changed = [m.block for m, a, b in zip(modules, allocation, self._base, strict=True) if a != b]
        return min(changed) if changed else len(self.decoder.blocks) - 1
