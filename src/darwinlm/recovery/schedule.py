"""The learning rate of every step, as a share of the recipe's."""

from __future__ import annotations

import math

from darwinlm.recipe import RecoverySettings

LEAST_STEPS = 10
"""AdamW's first steps move every weight by the whole rate, whatever its gradient: a short warm-up has so many."""


def warm_up_steps(settings: RecoverySettings, steps: int) -> int:
    """Steps in which the rate rises: `warmup` of all, but in a short training no less than ten, or a quarter of it."""
    if not settings.warmup:
        return 0
    return max(round(settings.warmup * steps), min(LEAST_STEPS, steps // 4))


def rate_share(settings: RecoverySettings, steps: int, step: int) -> float:
    """Share of `learning_rate` at a step, counted from 0.

    It rises in equal parts, the first step's among them. Then `constant` stays, `cosine` falls to `min_rate` at the
    end, and `wsd` stays until `decay` of the steps are left, in which it falls to `min_rate` in a straight line.
    """
    warm = warm_up_steps(settings, steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    if settings.schedule == "constant":
        return 1.0
    least = settings.min_rate
    if settings.schedule == "cosine":
        done = min((step - warm) / max(steps - warm, 1), 1.0)
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2
    falling = max(round(settings.decay * steps), 1)
    return least + (1 - least) * min(max((steps - step) / falling, 0.0), 1.0)
