"""Gradient agreement: whether a candidate would learn as the dense model does, told without training it.

TraceNAS (zero-shot pruning by gradient traces) ranks candidates so: the gradient of the language-modelling loss is
taken in the residual stream before every block, in the dense model and in the candidate, on the same few tokens; a
candidate whose gradients point where the dense model's do has kept what learning needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from darwinlm import parallel
from darwinlm.search.evaluate.dense_side import HEAD_TOKENS
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.problem.space import Allocation


class GradientAgreement:
    """Mean cosine, over blocks, between a candidate's and the dense model's gradients in the residual stream.

    Args:
        placed: swaps candidates into the one model.
        tokens: [n, t] text, a few sequences.
    """

    def __init__(self, placed: PlacedModules, tokens: Tensor) -> None:
        self.placed = placed
        self.parts = torch.split(tokens, max(1, HEAD_TOKENS // tokens.shape[1]))
        self.dense = self._gradients(placed.space.dense)

    def of(self, allocations: Sequence[Allocation]) -> list[float]:
        """Agreement of each, at most 1, which the dense model has with itself. Processes share the work."""
        mine = {each: self._agreement(each) for each in parallel.mine(list(dict.fromkeys(allocations)))}
        found: dict[Allocation, float] = {}
        for part in parallel.gather(mine):
            found |= part
        return [found[each] for each in allocations]

    def _agreement(self, allocation: Allocation) -> float:
        cosines = [
            functional.cosine_similarity(ours, theirs, dim=0)
            for ours, theirs in zip(self._gradients(allocation), self.dense, strict=True)
        ]
        return float(torch.stack(cosines).mean())

    @torch.enable_grad()
    def _gradients(self, allocation: Allocation) -> list[Tensor]:
        """Flat float32 gradient before each block."""
        decoder = self.placed.decoder
        self.placed.apply(allocation)
        count = len(decoder.blocks)
        found: list[list[Tensor]] = [[] for _ in range(count)]
        for rows in self.parts:
            arguments = decoder.block_arguments(rows)
            hidden = decoder.embed(rows).clone().requires_grad_()
            before = []
            for block in range(count):
                before.append(hidden)
                hidden = decoder.run_block(block, hidden, arguments[block])
            logits = decoder.logits(rows, hidden, count)[:, :-1].flatten(0, 1).float()
            loss = functional.cross_entropy(logits, rows[:, 1:].reshape(-1).to(logits.device), reduction="sum")
            for block, gradient in enumerate(torch.autograd.grad(loss, before)):
                found[block].append(gradient.float().flatten())
        return [torch.cat(parts) for parts in found]
