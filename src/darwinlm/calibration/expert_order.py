"""Removal order of whole experts of a mixture, with the error of its output after each step.

When an expert is removed, its tokens move to their next choice, and the router's weights are recomputed for the
remaining experts. The error accounts for both. F_t holds the outputs of the experts that token t uses or would use
next, and y_t is the dense output. Every mixture is a combination c of the rows of F_t. Its error,

    ‖Σ_j c_j f_j - y‖²_S = [c; -1]ᵀ G_t [c; -1]    with    G_t = [F_t; y_t] S [F_t; y_t]ᵀ,

needs only one small matrix for each token. Experts are removed one at a time, the cheapest first. If S is the second
moment of the output gradients, half of the error estimates KL as in `database/factors.py`.

Letters: n tokens, e experts, k experts chosen for a token, a = k + 1 candidates of a token, m residual width.
Sources: expert pruning by what an expert adds (REAP, Lasby et al. 2025, arXiv 2510.13999) and backward elimination
(Hassibi & Stork 1993). Neither considers that tokens move to another expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

Outputs = Callable[[int, Tensor], Tensor]
"""Unweighted output [i, m] of one expert on some of the tokens [i]."""

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over several processes, in place."""


PIECE: Final = 1024
"""Tokens whose outputs are multiplied at once."""


@dataclass(frozen=True)
class ExpertOrder:
    """Experts of one mixture in the order in which to keep them.

    Attributes:
        experts: [e] int64, the last one removed first.
        errors: [e + 1] float64, squared error by number of kept experts; the energy of y below k.
        losses: [e + 1] float64, estimated loss of the model in nats per token; None without output gradients. The first
            one also counts a shared expert, which is removed with the whole mixture.
    """

    experts: Tensor
    errors: Tensor
    losses: Tensor | None


def chosen_weights(logits: Tensor, chosen: Tensor, alive: Tensor, *, normalised: bool) -> Tensor:
    """The router's weights [n, k] of the chosen experts.

    Args:
        logits: [n, e], logits of the router, or logarithms of other scores.
        chosen: [n, k], chosen experts.
        alive: [n, e] or [e] boolean, the remaining experts.
        normalised: Whether the weights sum to one; otherwise they are shares of the softmax over all remaining experts.
    """
    picked = logits.gather(1, chosen)
    if normalised:
        return picked.softmax(-1)
    return (picked - logits.masked_fill(~alive, -torch.inf).logsumexp(-1, keepdim=True)).exp()


class _Mixture:
    """A mixture on some text, with the experts of each token and its next choice; arguments as in `expert_order`."""

    def __init__(
        self, logits: Tensor, choice: Tensor, outputs: Outputs, k: int, S: Tensor | None, *, normalised: bool
    ) -> None:
        self.logits, self.choice, self.outputs, self.k, self.normalised = logits, choice, outputs, k, normalised
        self.alive = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        self.candidates = choice.topk(min(k + 1, logits.shape[1]), dim=-1).indices  # [n, a]
        width = outputs(0, self.candidates[:1, 0]).shape[-1]
        self.F = torch.zeros(*self.candidates.shape, width, device=logits.device)  # [n, a, m]
        self.every = torch.arange(len(logits), device=logits.device)
        for slot in range(self.candidates.shape[1]):
            self._fill(self.every, slot)
        weights = self._weights()
        self.y = (weights[..., None] * self.F[:, :k]).sum(1)
        self.metrics = (None,) if S is None else (None, S.to(self.F))
        self.grams = [self._grams(self.every, metric) for metric in self.metrics]

    def _weights(self) -> Tensor:
        """The router's weights [n, k] of the experts in use."""
        return chosen_weights(self.logits, self.candidates[:, : self.k], self.alive, normalised=self.normalised)

    def _fill(self, tokens: Tensor, slot: int) -> None:
        """Compute the outputs of the candidates in one slot for some of the tokens."""
        chosen = self.candidates[tokens, slot]
        for expert in torch.unique(chosen).tolist():
            members = tokens[chosen == expert]
            self.F[members, slot] = self.outputs(expert, members).float()

    def _grams(self, tokens: Tensor, metric: Tensor | None) -> Tensor:
        """G of some of the tokens [i], [i, a + 1, a + 1]."""
        grams = []
        for part in torch.split(tokens, PIECE):
            vectors = torch.cat([self.F[part], self.y[part, None]], dim=1)
            grams.append((vectors if metric is None else vectors @ metric) @ vectors.mT)
        return torch.cat(grams)

    def energy(self, which: int, beside: Tensor | None = None) -> Tensor:
        """Summed squares of the dense output, in one of the metrics; with an output [n, m] that is added to it."""
        if beside is None:
            return self.grams[which][:, -1, -1].sum(dtype=torch.float64)
        y, metric = self.y + beside.float(), self.metrics[which]
        squares: Tensor = torch.linalg.vecdot(y if metric is None else y @ metric, y)
        return squares.sum(dtype=torch.float64)

    def error(self, which: int) -> Tensor:
        """Summed squared error of the current mixture."""
        weights = self._weights()
        return self._squares(self.grams[which], weights, range(self.k)).sum(dtype=torch.float64)

    def costs(self) -> Tensor:
        """Increase of the summed squared error by removing each expert, [e] float64; infinite for removed ones."""
        n, a = self.candidates.shape
        gram = self.grams[-1]
        weights = self._weights()
        now = self._squares(gram, weights, range(self.k))
        changes = torch.zeros_like(self.logits) if self.normalised else self._rescaling_change(gram, weights)
        for slot in range(self.k):
            rest = [place for place in range(a) if place != slot]
            alive = self.alive.expand(n, -1).scatter(1, self.candidates[:, slot, None], value=False)
            weights = chosen_weights(self.logits, self.candidates[:, rest], alive, normalised=self.normalised)
            change = self._squares(gram, weights, rest) - now
            changes.scatter_(1, self.candidates[:, slot, None], change[:, None])
        return changes.sum(0, dtype=torch.float64).masked_fill(~self.alive, torch.inf)

    def _rescaling_change(self, gram: Tensor, weights: Tensor) -> Tensor:
        """Change of the squared error by removing an expert that the token doesn't use, [n, e].

        All other shares of the softmax then grow by the factor 1 / (1 - the expert's share).
        """
        mixed = (gram[:, :, : self.k] @ weights[..., None])[..., 0]  # [n, a + 1], products with the current mixture
        with_itself, with_y = torch.linalg.vecdot(mixed[:, : self.k], weights), mixed[:, -1]
        shares = self.logits.masked_fill(~self.alive, -torch.inf).softmax(-1)
        more = 1 / (1 - shares).clamp_min(torch.finfo(shares.dtype).eps)
        change: Tensor = (more.square() - 1) * with_itself[:, None] - 2 * (more - 1) * with_y[:, None]
        return change

    def _squares(self, gram: Tensor, weights: Tensor, places: list[int] | range) -> Tensor:
        """Squared error of a combination of some slots, [n]."""
        c = torch.zeros(gram.shape[:2], device=gram.device)
        c[:, list(places)] = weights
        c[:, -1] = -1
        squares: Tensor = torch.linalg.vecdot((gram @ c[..., None])[..., 0], c)
        return squares

    def remove(self, expert: int) -> None:
        """Remove an expert: tokens with it among their candidates get their next choice."""
        self.alive[expert] = False
        places = (self.candidates == expert).nonzero()
        if int(self.alive.sum()) <= self.k:  # there is no further choice
            keep = self.candidates != expert
            self.candidates = self.candidates[keep].view(len(self.candidates), self.k)
            self.F = self.F[keep].view(len(self.candidates), self.k, -1)
            self.grams = [self._grams(self.every, metric) for metric in self.metrics]
            return
        tokens, slots = places.unbind(1)
        after = torch.arange(self.candidates.shape[1], device=slots.device)
        moved = (after + (after >= slots[:, None])).clamp_max(self.candidates.shape[1] - 1)
        hand = self.candidates[tokens].gather(1, moved)
        left = self.choice[tokens].masked_fill(~self.alive, -torch.inf).scatter(1, hand[:, :-1], -torch.inf)
        hand[:, -1] = left.argmax(-1)
        self.candidates[tokens] = hand
        self.F[tokens] = self.F[tokens].gather(1, moved[..., None].expand(-1, -1, self.F.shape[2]))
        self._fill(tokens, self.candidates.shape[1] - 1)
        for which, metric in enumerate(self.metrics):
            self.grams[which][tokens] = self._grams(tokens, metric)


@torch.no_grad()
def expert_order(
    logits: Tensor,
    outputs: Outputs,
    k: int,
    S: Tensor | None = None,
    *,
    normalised: bool,
    choice: Tensor | None = None,
    beside: Tensor | None = None,
    total: Total = lambda tensor: tensor,
) -> ExpertOrder:
    """Remove experts one at a time, down to the number that a token uses.

    Args:
        logits: [n, e] float32 of the router, or logarithms of other scores.
        outputs: Outputs of the experts.
        k: Experts chosen for each token.
        S: [m, m] floating, second moment of the gradient of the summed loss at the mixture's output, per token.
        normalised: Whether the weights of the chosen experts sum to one.
        choice: [n, e] float32, scores by which experts are chosen; None takes the logits.
        beside: [n, m] output of a shared expert, which is removed with the last experts.
        total: Sum over processes that hold different tokens, so that all of them get the same order.
    """
    n_experts = logits.shape[1]
    count = total(torch.tensor([len(logits)], dtype=torch.float64, device=logits.device))
    mixture = _Mixture(logits, logits if choice is None else choice, outputs, k, S, normalised=normalised)
    curves = torch.zeros(len(mixture.grams), n_experts + 1, dtype=torch.float64, device=logits.device)
    for which, curve in enumerate(curves):
        curve[:k] = mixture.energy(which)
    if beside is not None and S is not None:
        curves[1, 0] = mixture.energy(1, beside)
    removed: list[int] = []
    for kept in range(n_experts - 1, k - 1, -1):
        removed.append(int(total(mixture.costs()).argmin()))
        mixture.remove(removed[-1])
        for which, curve in enumerate(curves):
            curve[kept] = mixture.error(which)
    curves = total(curves) / count
    last = [expert for expert in range(n_experts) if expert not in removed]
    order = torch.tensor([*last, *reversed(removed)], dtype=torch.int64)
    return ExpertOrder(order, curves[0].cpu(), None if S is None else curves[1].cpu() / 2)
