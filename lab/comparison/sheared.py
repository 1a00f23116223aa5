"""Sheared-LLaMA's pruning: constrained masks over heads and MLP channels, learned together with the weights.

The objective is  cross-entropy + Σ λ (s - t) + φ (s - t)²,  minimised over weights and masks and maximised over λ and
φ. s is the expected share of kept units of a module, and t is its target, which falls from 1 in the first part of the
training (arXiv 2310.06694, section 2.1). The original can also prune the residual width and the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.model.families.family import Family
from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.layer_sizes import Place
from darwinlm.model.units.levels import Level
from darwinlm.model.walk.outputs import output_projection
from darwinlm.runtime.errors import FamilyError, NumericsError
from lab.comparison.hard_concrete import HardConcrete
from lab.comparison.ranked import UnitScores

MASK_RATE = 0.3
"""Learning rate of the masks; the paper's is 1, over 3200 steps."""

RATE = 1e-4
"""Learning rate of the weights, as in the paper."""

ASCENT = 1.0
"""Learning rate of the multipliers."""

PULL = 10.0
"""Initial φ. The paper starts at 0, with which short trainings oscillate around the target."""

WARMUP = 0.5
"""Share of the steps in which the target falls from 1 to its final value."""


class ModuleMask(nn.Module):
    """Masks of one module, expanded to the columns of its output projection."""

    def __init__(self, shape: ModuleShape, level: Level, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        full, kept = shape.sizes, level.sizes
        if shape.kind == "mlp":
            counts = {"channels": full.width}
            self.targets = {"channels": kept.width / full.width}
        else:
            counts = {"groups": full.groups}
            self.targets = {"groups": kept.groups / full.groups}
            if full.heads_per_group > 1:
                counts["heads"] = full.heads
                self.targets["heads"] = kept.heads / (kept.groups * full.heads_per_group) if kept.groups else 1.0
        self.parts = nn.ModuleDict({name: HardConcrete(n, generator) for name, n in counts.items()})

    def columns(self, z: dict[str, Tensor]) -> Tensor:
        """Masks of units expanded to columns, [width]."""
        if self.shape.kind == "mlp":
            return z["channels"]
        spread = z["groups"].repeat_interleave(self.shape.sizes.heads_per_group)
        if "heads" in z:
            spread = spread * z["heads"]
        return spread.repeat_interleave(self.shape.sizes.head_dim)

    def sample(self) -> Tensor:
        """One draw, [width]."""
        return self.columns({name: part.sample() for name, part in self._named()})

    def _named(self) -> Iterator[tuple[str, HardConcrete]]:
        for name, part in self.parts.items():
            assert isinstance(part, HardConcrete)
            yield name, part

    def gaps(self, progress: float) -> list[Tensor]:
        """Expected minus target share of each kind of unit, at this progress of the target."""
        return [part.expected() - (1 - (1 - self.targets[name]) * progress) for name, part in self._named()]

    def scores(self) -> UnitScores:
        """Learned scores of units, and the final masks as scale."""
        z = {name: part.final().cpu() for name, part in self._named()}
        alpha = {name: part.log_alpha.detach().cpu() for name, part in self._named()}
        scale = self.columns(z)
        if self.shape.kind == "mlp":
            return UnitScores(alpha["channels"], scale=scale)
        heads = alpha.get("heads", torch.zeros(self.shape.sizes.heads))
        units = heads.view(self.shape.sizes.groups, self.shape.sizes.heads_per_group)
        # Groups are only ranked by their masks, not by the scores of their heads.
        weight = 1e3 * float(units.abs().max() + 1) * self.shape.sizes.heads_per_group
        return UnitScores(units, groups=weight * alpha["groups"], scale=scale)


def shear(
    model: Any,
    family: Family,
    shapes: Sequence[ModuleShape],
    levels: Sequence[Level],
    batches: Sequence[Tensor],
    *,
    seed: int,
    rate: float = RATE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[Place, UnitScores], dict[str, Any]]:
    """Learn masks of units; the model's weights are trained with them, in place.

    The dense model is in float32. `batches` are [n, t], the tokens of each step. With a `rate` of 0 the weights stay.
    Returns scores of every module's units, and the record: losses and the largest gap to the target at the end.
    Raises FamilyError for a mixture of experts, NumericsError if the loss isn't finite.
    """
    if any(shape.sizes.experts for shape in shapes):
        raise FamilyError("sheared does not support mixtures of experts: leave it out")
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    cut = [pair for pair in zip(shapes, levels, strict=True) if not pair[0].fixed]
    masks = [ModuleMask(shape, level, generator).to(device) for shape, level in cut]
    count = sum(len(mask.parts) for mask in masks)
    multipliers = torch.zeros(2, count, device=device)
    multipliers[1] = PULL
    model.requires_grad_(requires_grad=rate > 0)
    groups = [{"params": [p for mask in masks for p in mask.parameters()], "lr": MASK_RATE, "weight_decay": 0.0}]
    if rate > 0:
        groups.append({"params": list(model.parameters()), "lr": rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    blocks = model.get_submodule(family.layers)
    losses: list[float] = []
    warm = max(1, round(WARMUP * len(batches)))
    gaps: list[Tensor] = []
    with ExitStack() as hooks:
        for mask in masks:
            output = output_projection(blocks[mask.shape.block], family, mask.shape.kind)
            assert output is not None
            hooks.callback(output.register_forward_pre_hook(_masked(mask)).remove)
        for step, tokens in enumerate(batches):
            batch = tokens.to(device)
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
            gaps = [gap for mask in masks for gap in mask.gaps(min(1.0, (step + 1) / warm))]
            stacked = torch.stack(gaps)
            total = loss + (multipliers[0] * stacked + multipliers[1] * stacked.square()).sum()
            if not bool(torch.isfinite(total)):
                raise NumericsError(f"sheared: the loss isn't finite in step {step + 1}: leave it out of --methods")
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            if rate > 0:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            # Plain gradient ascent on the multipliers, because Adam oscillates around the target in short runs.
            multipliers += ASCENT * torch.stack((stacked.detach(), stacked.detach().square()))
            losses.append(float(loss.detach()))
            progress(step + 1, len(batches))
    model.requires_grad_(requires_grad=False)
    record = {
        "steps": len(batches),
        "loss_start": losses[0],
        "loss_end": losses[-1],
        "largest_gap": max(abs(float(gap.detach())) for gap in gaps),
    }
    return {(mask.shape.block, mask.shape.kind): mask.scores() for mask in masks}, record


def _masked(mask: ModuleMask) -> Callable[[Any, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    def apply(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] * mask.sample().to(inputs[0].dtype), *inputs[1:])

    return apply
