"""One candidate that learns: modules of its own, AdamW on float32 master weights, and its state while others learn."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from darwinlm.calibration.transfers import HostCopy
from darwinlm.recipe import TrainingSettings

WARMUP = 4
"""Steps in which the learning rate rises: the first steps of AdamW are all of full size."""

CLIP = 1.0
"""Largest norm of a gradient."""

PART = 1 << 28
"""Weights whose float32 gradients exist at once."""


class LowRank(nn.Module):
    """A linear layer that stays as it is, and a low-rank correction that learns (LoRA, arXiv 2106.09685).

    Args:
        linear: the layer.
        rank: of the correction.
        generator: of its first factor; the second starts at zero.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = linear
        rank = min(rank, linear.in_features, linear.out_features)
        A = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
        self.A = nn.Parameter(A.to(linear.weight.device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        low = functional.linear(x, self.A.to(x.dtype))
        result: Tensor = self.linear(x) + functional.linear(low, self.B.to(x.dtype))
        return result


@dataclass(frozen=True)
class Parked:
    """What a student has learnt, in main memory: 12 bytes for each of its weights.

    Attributes:
        tensors: master weights, first moments, second moments.
        updates: of each weight, as AdamW counts them.
        steps: finished steps.
        rounds: of training text that it has learnt from.
    """

    tensors: HostCopy
    updates: list[float]
    steps: int
    rounds: int


class Student:
    """One candidate's own modules, their master weights and their optimiser.

    Args:
        modules: those of the placed, in the order of the allocation; they are not changed.
        settings: how to train.

    Attributes:
        working: weights of the passes.
        steps: finished steps.
        rounds: of training text that it has learnt from.
    """

    def __init__(self, modules: Iterable[nn.Module], settings: TrainingSettings) -> None:
        self.settings = settings
        self.steps = 0
        self.rounds = 0
        self.modules = [self._own(module) for module in modules]
        self.working = [p for module in self.modules for p in module.parameters() if p.requires_grad]

    def _own(self, module: nn.Module) -> nn.Module:
        if not self.settings.lora_rank:
            return copy.deepcopy(module).requires_grad_(requires_grad=True)
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        own: nn.Module = copy.deepcopy(module, shared)
        generator = torch.Generator().manual_seed(0)
        for name, child in list(own.named_modules()):
            if isinstance(child, nn.Linear):
                owner = own.get_submodule(name.rpartition(".")[0])
                setattr(owner, name.rpartition(".")[2], LowRank(child, self.settings.lora_rank, generator))
        return own

    @cached_property
    def master(self) -> list[Tensor]:
        """Float32 weights that AdamW works on; made when they are first asked for."""
        return [p.detach().float() if p.dtype != torch.float32 else p for p in self.working]

    @cached_property
    def optimiser(self) -> torch.optim.AdamW:
        """Its two moments are made in the first step."""
        rate = self.settings.learning_rate
        return torch.optim.AdamW(self.master, lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=self._fused or None)

    @property
    def _fused(self) -> bool:
        return self.working[0].device.type == "cuda"

    @property
    def wanted(self) -> int:
        """Bytes that the master weights, moments and gradients will take beside the working weights."""
        return sum(
            weight.numel() * (8 + weight.element_size() + 4 * (weight.dtype != torch.float32))
            for weight in self.working
        )

    @torch.no_grad()
    def step(self) -> None:
        """Move the master weights along the gradients gathered in the working ones, and copy them back."""
        learning = [
            _Update(master, working, working.grad)
            for master, working in zip(self.master, self.working, strict=True)
            if working.grad is not None
        ]
        if not learning:
            return
        for each in learning:
            each.working.grad = None
        norms = [torch.linalg.vector_norm(each.gradient, dtype=torch.float32) for each in learning]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.steps += 1
        if not torch.isfinite(norm):  # a batch that overflows is left out
            return
        shrink = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * min(1.0, self.steps / WARMUP)
        for part in _parts(learning):  # AdamW leaves weights without a gradient as they are
            for each in part:
                each.master.grad = each.gradient.float().mul_(shrink)
            self.optimiser.step()
            for each in part:
                each.master.grad = None
                if each.master is not each.working:
                    each.working.copy_(each.master)

    def park(self) -> Parked:
        """Its state in main memory."""
        states = [self.optimiser.state[master] or self._blank(master, 0.0) for master in self.master]
        moments = [state[name] for name in ("exp_avg", "exp_avg_sq") for state in states]
        updates = [float(state["step"]) for state in states]
        return Parked(HostCopy([*self.master, *moments]), updates, self.steps, self.rounds)

    @torch.no_grad()
    def resume(self, parked: Parked) -> None:
        """Go on from a state that was parked."""
        self.steps, self.rounds = parked.steps, parked.rounds
        states = [self._blank(master, count) for master, count in zip(self.master, parked.updates, strict=True)]
        for master, state in zip(self.master, states, strict=True):
            self.optimiser.state[master] = state
        moments = [state[name] for name in ("exp_avg", "exp_avg_sq") for state in states]
        parked.tensors.copy_to([*self.master, *moments])
        for master, working in zip(self.master, self.working, strict=True):
            if master is not working:
                working.copy_(master)

    def _blank(self, master: Tensor, updates: float) -> dict[str, Tensor]:
        """AdamW's state of a weight with moments of zero."""
        step = torch.tensor(updates, device=master.device if self._fused else None)
        return {"step": step, "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}


class _Update(NamedTuple):
    """A weight that moves."""

    master: Tensor
    working: Tensor
    gradient: Tensor


def _parts(updates: list[_Update]) -> Iterator[list[_Update]]:
    """Updates in groups whose float32 gradients may exist at once."""
    part: list[_Update] = []
    size = 0
    for each in updates:
        if part and size + each.master.numel() > PART:
            yield part
            part, size = [], 0
        part.append(each)
        size += each.master.numel()
    yield part
