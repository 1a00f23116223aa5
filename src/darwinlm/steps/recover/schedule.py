"""Tokens and learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from darwinlm.runtime.errors import RecipeError
from darwinlm.steps.recover.recovery_settings import RecoverySettings

WARM_UP = 0.02
"""Share of warm-up steps."""

LEAST_STEPS = 10
"""Minimum warm-up, because AdamW's first steps move every weight by the full rate; see docs/notebook/training.md."""

LEAST_RATE = 0.1
"""Final learning rate as a share of the largest, as for Llama 2 (arXiv 2307.09288)."""


@dataclass(frozen=True)
class Steps:
    """Division of a training into steps.

    Attributes:
        length: Tokens in a sequence.
        rows: Sequences in one micro-batch of a process.
        accumulation: Number of micro-batches of each process in a step.
        count: Number of optimizer steps.
        per_epoch: Steps in an epoch.
        step_rows: Sequences in one step over all processes.
    """

    length: int
    rows: int
    accumulation: int
    count: int
    per_epoch: int
    step_rows: int

    @property
    def sequences(self) -> int:
        """Sequences in an epoch."""
        return self.per_epoch * self.step_rows

    @property
    def tokens(self) -> int:
        """Tokens in one step."""
        return self.step_rows * self.length


def plan_steps(settings: RecoverySettings, length: int, micro: int, processes: int = 1) -> Steps:
    """Divide the tokens into steps of `settings.step_tokens`; the remainder is dropped.

    A batch that isn't given is rounded to sequences for each process. `length` is the number of tokens in a sequence,
    `micro` that of tokens that one process may run at once. Raises RecipeError if a given batch can't be divided
    evenly, or there are too few tokens for one step.
    """
    batch, least = settings.step_tokens, length * processes
    if settings.tokens < least:
        raise RecipeError(
            f"recovery.tokens is {settings.tokens}, too few for one step, which takes a sequence of {length} "
            f"tokens for each of {processes} process(es): give at least {least}, or lower text.sequence_length"
        )
    if batch != settings.batch_tokens:
        batch = max(batch // least, 1) * least
    if batch % least:
        raise RecipeError(
            f"recovery.batch_tokens is {batch}, which {processes} process(es) can't share evenly in sequences of "
            f"{length} tokens: make it a multiple of {least}"
        )
    sequences = batch // least
    most = max(1, min(micro // length, sequences))
    per_batch = next(per_batch for per_batch in range(most, 0, -1) if sequences % per_batch == 0)
    count = max(1, settings.tokens // batch)
    return Steps(length, per_batch, sequences // per_batch, count, -(-count // settings.epochs), batch // length)


def warm_up_steps(steps: int) -> int:
    """Warm-up steps: the share `WARM_UP`, but at least ten or, in a short training, a quarter of the steps."""
    return max(round(WARM_UP * steps), min(LEAST_STEPS, steps // 4))


def rate_share(steps: int, step: int) -> float:
    """Share of `learning_rate` at a step, counted from 0: a linear rise, then a cosine that falls to `LEAST_RATE`."""
    warm = warm_up_steps(steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = min((step - warm) / max(steps - warm, 1), 1.0)
    return LEAST_RATE + (1 - LEAST_RATE) * (1 + math.cos(math.pi * done)) / 2
