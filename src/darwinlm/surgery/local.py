"""Local distillation: a few optimiser steps on all weights of a pruned block towards the dense residual stream.

Source: the blockwise distillation of Puzzle (arXiv 2411.19146), applied to the streams of the refit. The input of the
block is the smaller model's residual stream, with its accumulated error. The target is the dense stream after the
block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darwinlm.calibration.stream import BlockStream
from darwinlm.errors import NumericsError

_CHECKS = 4


@dataclass(frozen=True)
class LocalChoice:
    """Result of local distillation in one block.

    Attributes:
        steps: Step of the kept weights; 0 for the original weights.
        before: Validation error before training, E‖dense - small‖² relative to E‖dense - before the block‖².
        after: Validation error of the kept weights.
    """

    steps: int
    before: float
    after: float


def distil_block(
    fit: BlockStream,
    validation: BlockStream,
    block: int,
    targets: tuple[Sequence[Tensor], Sequence[Tensor]],
    weights: Mapping[str, Tensor],
    *,
    steps: int,
    learning_rate: float,
    batch_rows: int,
    seed: int,
) -> tuple[dict[str, Tensor], LocalChoice]:
    """Train a block. The block is restored afterwards, and both streams stay before it.

    Args:
        fit: The smaller stream on the fitted text, before the loaded block.
        validation: The smaller stream on validation text, before the block.
        block: The block.
        targets: The dense stream after the block, on both texts.
        weights: The block's weights, float32 by name inside it; those in the block may be rounded.
        steps: Number of AdamW steps, with a cosine schedule to zero.
        learning_rate: Initial learning rate.
        batch_rows: Sequences in one step.
        seed: Seed of the sampling order.

    Returns:
        The block's weights, float32 by name inside the block (empty if none were better), and the decision.

    Raises:
        NumericsError: The loss isn't finite.
    """
    module = fit.decoder.blocks[block]
    given = {name: parameter.data for name, parameter in module.named_parameters()}
    if not given:
        return {}, LocalChoice(0, 0.0, 0.0)
    sequences = min(batch_rows, fit.hidden.sequences)
    before = _error(validation, block, targets[1])
    best: dict[str, Tensor] = {}
    choice = LocalChoice(0, before, before)
    shared = validation.decoder.blocks[block]
    masters = {name: nn.Parameter(weights[name].to(data.device).float().clone()) for name, data in given.items()}
    optimiser = torch.optim.AdamW(masters.values(), lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = torch.Generator().manual_seed(seed + block)
    arguments = fit.arguments_for(sequences)[block]
    for step in range(1, steps + 1):
        picked = torch.randperm(fit.hidden.sequences, generator=order)[:sequences].tolist()
        x, target = (
            torch.stack([_row(of, fit.batch_sequences, index) for index in picked]) for of in (fit.hidden, targets[0])
        )
        with torch.enable_grad():
            cast = {name: master.to(fit.dtype) for name, master in masters.items()}
            output = torch.func.functional_call(module, cast, (x,), arguments)
            result = output[0] if isinstance(output, tuple) else output
            scale = (target.float() - x.float()).square().mean().clamp_min(1e-12)
            loss = (result.float() - target.float()).square().mean() / scale
            loss.backward()
        if not bool(torch.isfinite(loss)):
            raise NumericsError(
                f"block {block}: the loss of the local distillation isn't finite; lower refit.local_rate"
            )
        nn.utils.clip_grad_norm_(masters.values(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % max(1, steps // _CHECKS) == 0 or step == steps:
            trained = {name: master.detach().clone() for name, master in masters.items()}
            _set(shared, trained, fit.dtype)
            error = _error(validation, block, targets[1])
            if error < choice.after:
                best, choice = trained, LocalChoice(step, before, error)
    _set(shared, {name: data.float() for name, data in given.items()}, fit.dtype)
    return best, choice


def _row(states: Sequence[Tensor], batch_sequences: int, index: int) -> Tensor:
    """One sequence [t, m] of a stream whose batches have `rows` sequences."""
    return states[index // batch_sequences][index % batch_sequences]


def _set(module: nn.Module, weights: dict[str, Tensor], dtype: torch.dtype) -> None:
    parameters = dict(module.named_parameters())
    for name, weight in weights.items():
        parameters[name].data = weight.to(parameters[name].device, dtype)


@torch.no_grad()
def _error(stream: BlockStream, block: int, targets: Sequence[Tensor]) -> float:
    """E‖dense - small‖² after the block, relative to E‖dense after it - small before it‖²."""
    difference = energy = 0.0
    for hidden, target in zip(stream.hidden, targets, strict=True):
        result = stream.decoder.run_block(block, hidden, stream.arguments[len(hidden)][block])
        difference += float((target.double() - result.double()).square().sum())
        energy += float((target.double() - hidden.double()).square().sum())
    return difference / energy if energy else 0.0
