"""Removal order of whole experts of a mixture, each judged after a refit of the remaining ones.

When an expert is removed, its tokens move to their next choice, and the router's weights are recomputed for the
remaining experts. The output projections of these are then fitted in turn towards the dense output: with the input g x
of a projection (its channels x times the router's weight g), the fit of a change adds the ridge solution of the
difference that is still missing. Experts are removed in steps, those without which the model's loss is lowest first.

Letters: n tokens, e experts, k experts chosen for a token, a = k + 1 candidates of a token, m residual width,
d channels of an expert. Sources: backward elimination (Hassibi & Stork 1993); expert pruning (REAP, Lasby et al. 2025,
arXiv 2510.13999), which considers neither the tokens' next choices nor a refit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from darwinlm.runtime.compute import exact

Outputs = Callable[[int, Tensor], tuple[Tensor, Tensor]]
"""Channels [i, d] and unweighted outputs [i, m] of one expert on some of the tokens [i], float32."""

Judge = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]
"""For the remaining experts of a step and for each trial without some of them, [e] boolean: squared error of the output
and loss of the model, [c] float64 each, in main memory."""

ROUNDS: Final = 2
"""Fits of each expert in one trial."""

RIDGE, STRENGTH = 0.1, 0.75
"""Damping of a fit relative to the mean diagonal, and the share of its change that other tokens get. The stage `refit`
chooses both from such values; the order was measured with these (docs/notebook/experts.md)."""

SHARE, TRIALS = 8, 8
"""A step removes one in so many of the remaining experts (at least one). It tries twice as many, and at least so many:
those with the fewest tokens. Of up to 8 experts, all are tried. 128 experts, 8 for each token, take 321 trials."""

NOTHING: Final = 1e-20
"""Smallest damping, so that an expert without tokens can be factorised."""


@dataclass(frozen=True)
class ExpertOrder:
    """Experts of one mixture in the order in which to keep them.

    Attributes:
        experts: [e] int64, the last one removed first.
        errors: [e + 1] float64, squared error of the output by number of kept experts; its energy below k.
        losses: [e + 1] float64, estimated loss of the model in nats per token. Below k it also counts a shared expert,
            which is removed with the whole mixture.
    """

    experts: Tensor
    errors: Tensor
    losses: Tensor


@dataclass(frozen=True)
class RoutedTokens:
    """What a mixture does with some tokens.

    Attributes:
        logits: [n, e] float32 of the router, or logarithms of other scores.
        choice: Scores [n, e] float32 by which experts are chosen, for the remaining ones, [e] boolean; others have
            minus infinity.
        y: [n, m] float32, output of the mixture.
        scale: [n, 1] float32, weights of errors in fits: what a norm behind the mixture multiplies its output by.
        fitted: Number of tokens for fits; the losses are those of the others.
        k: Experts chosen for each token.
        normalised: Whether the weights of the chosen experts sum to one; otherwise they are shares of the softmax over
            all remaining experts.
        factors: [e] float32, factors on the weights.
    """

    logits: Tensor
    choice: Callable[[Tensor], Tensor]
    y: Tensor
    scale: Tensor
    fitted: int
    k: int
    normalised: bool
    factors: Tensor


def routed_weights(routed: RoutedTokens, chosen: Tensor, alive: Tensor) -> Tensor:
    """The router's weights [n, a] of the candidates in `chosen`, of which the first k that remain are used.

    `chosen` are experts [n, a] in the order of choice, and `alive` the remaining experts, [e] boolean.
    """
    used = alive[chosen]
    used &= used.cumsum(-1) <= routed.k
    picked = routed.logits.gather(1, chosen)
    logits, absent = (picked, ~used) if routed.normalised else (routed.logits, ~alive)
    shares = (picked - logits.masked_fill(absent, -torch.inf).logsumexp(-1, keepdim=True)).exp()
    return shares.where(used, 0) * routed.factors[chosen]


def ridge_change(x: Tensor, missing: Tensor) -> Tensor:
    """Change of a projection, [d, m], that adds what is missing, [n, m], for inputs [n, d].

    The smaller one of the two equivalent systems is solved.
    """
    n, d = x.shape
    gram = x @ x.T if n < d else x.T @ x
    gram.diagonal().add_((RIDGE / d * x.square().sum()).clamp_min(NOTHING))
    factor, _ = torch.linalg.cholesky_ex(gram)
    if n < d:
        return x.T @ torch.cholesky_solve(missing, factor)
    return torch.cholesky_solve(x.T @ missing, factor)


class Remaining:
    """The experts that remain at one step, with their outputs on the tokens that use them or would use them next.

    These are a vector of d + m numbers for each token and candidate. A trial without one more expert keeps the order of
    choice. That is exact, except for softmax shares with a correction (ERNIE 4.5): there, the next step corrects it.
    """

    def __init__(self, routed: RoutedTokens, alive: Tensor, outputs: Outputs) -> None:
        self.routed = routed
        among = min(routed.k + 1, int(alive.sum()))
        self.chosen = routed.choice(alive).topk(among, dim=-1).indices
        experts = self.chosen.flatten()
        places = experts.argsort(stable=True)
        parts = (experts, experts[: routed.fitted * among])
        totals, fitted = torch.stack([part.bincount(minlength=len(alive)) for part in parts]).tolist()
        self.groups = [
            (rows // among, rows % among, *outputs(expert, rows // among), fitted[expert])
            for expert, rows in enumerate(torch.split(places, totals))
            if len(rows)
        ]

    def missing(self, alive: Tensor) -> Tensor:
        """The dense output minus that of the experts of a trial after their refit, [n, m]."""
        routed, weights = self.routed, routed_weights(self.routed, self.chosen, alive)[..., None]
        missing = routed.y.clone()
        step = torch.full_like(routed.scale, -1)
        step[routed.fitted :] = -STRENGTH
        for token, slot, _, output, _ in self.groups:
            missing.index_add_(0, token, weights[token, slot] * output, alpha=-1)
        for token, slot, channels, _, fitted in self.groups * ROUNDS:
            x, scale = weights[token, slot] * channels, routed.scale[token[:fitted]]
            change = ridge_change(scale * x[:fitted], scale * missing[token[:fitted]])
            missing.index_add_(0, token, step[token] * (x @ change))
        return missing


def usage(routed: RoutedTokens, alive: Tensor) -> Tensor:
    """Number of tokens of each remaining expert, [e] float64; infinite for removed ones."""
    chosen = routed.choice(alive).topk(routed.k, dim=-1).indices
    return exact(chosen.flatten().bincount(minlength=len(alive))).double().masked_fill(exact(~alive), torch.inf)


def steps(experts: int, k: int) -> Iterator[tuple[int, int, int]]:
    """Remaining experts before each step, removed ones, and tried ones; the last step removes none."""
    while True:
        gone = max(min(max(1, experts // SHARE), experts - k), 0)
        yield experts, gone, min(max(TRIALS, 2 * gone), experts) if gone else 0
        if not gone:
            return
        experts -= gone


def expert_order(
    experts: int, k: int, used: Callable[[Tensor], Tensor], judge: Judge, *, device: torch.device
) -> ExpertOrder:
    """Remove experts down to k.

    `used` gives the `usage` of the remaining experts. Numbers of experts inside a step get errors and losses between
    those before and after it.
    """
    alive = torch.ones(experts, dtype=torch.bool, device=device)
    curves = torch.zeros(2, experts + 1, dtype=torch.float64)
    removed: list[int] = []
    before = experts
    for remaining, gone, tried in steps(experts, k):
        tries = used(alive).argsort(stable=True)[:tried].tolist()
        trials = [alive.clone() for _ in range(1 + tried)]
        for expert, trial in zip(tries, trials[1:], strict=True):
            trial[expert] = False
        results = torch.stack(judge(alive, trials))
        if remaining == experts:
            results[:, 0] = 0  # of the dense mixture, without rounding
        between = torch.linspace(0, 1, before - remaining + 1, dtype=torch.float64)
        curves[:, remaining : before + 1] = torch.lerp(results[:, :1], curves[:, before, None], between)
        for place in results[1, 1:].argsort(stable=True)[:gone].tolist():
            removed.append(tries[place])
            alive[tries[place]] = False
        before = remaining
    last = [expert for expert in range(experts) if expert not in removed]
    return ExpertOrder(torch.tensor([*last, *reversed(removed)], dtype=torch.int64), *curves)
