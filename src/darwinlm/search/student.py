"""One candidate in training: its modules, AdamW on float32 master weights, and its state while it waits."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from darwinlm.streaming.transfers import HostCopy

WARMUP = 4
"""Warm-up steps, because the first steps of AdamW all have full size."""

CLIP = 1.0
"""Largest norm of a gradient."""

Update = tuple[Tensor, Tensor, Tensor]
"""Master weight, working weight and gradient."""

PART = 1 << 28
"""Largest number of weights with float32 gradients at once."""


@dataclass(frozen=True)
class Parked:
    """State of a student in main memory, 12 bytes per weight: master weights, first and second moments.

    `updates` is AdamW's number of updates of each weight; steps and rounds of training text are finished ones.
    `overflowed` is that of the student.
    """

    tensors: HostCopy
    updates: list[float]
    steps: int
    rounds: int
    overflowed: bool


class Student:
    """A copy of one candidate's modules, with master weights and an optimiser.

    The modules of the candidate, in the order of the allocation, are not changed. `working` are the weights of the
    passes. Once a gradient isn't finite, it has `overflowed`, and its weights stay. `rate` is the
    learning rate after the warm-up.
    """

    def __init__(self, modules: Iterable[nn.Module], rate: float) -> None:
        self.rate = rate
        self.steps = 0
        self.rounds = 0
        self.overflowed = False
        self.modules = [copy.deepcopy(module).requires_grad_(requires_grad=True) for module in modules]
        self.working = [weight for module in self.modules for weight in module.parameters()]

    @cached_property
    def master(self) -> list[Tensor]:
        """Float32 weights for AdamW, created on first use."""
        return [p.detach().float() if p.dtype != torch.float32 else p for p in self.working]

    @cached_property
    def optimiser(self) -> torch.optim.AdamW:
        """The optimiser; its two moments are created in the first step."""
        return torch.optim.AdamW(
            self.master, lr=self.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=self._fused or None
        )

    @property
    def _fused(self) -> bool:
        return self.working[0].device.type == "cuda"

    @torch.no_grad()
    def step(self) -> None:
        """Update the master weights with the accumulated gradients, and copy them to the working weights."""
        gradients = [weight.grad for weight in self.working]
        triples = zip(self.master, self.working, gradients, strict=True)
        learning: list[Update] = [
            (master, working, gradient) for master, working, gradient in triples if gradient is not None
        ]
        if not learning:
            return
        for weight in self.working:
            weight.grad = None
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for _, _, gradient in learning]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.steps += 1
        self.overflowed = self.overflowed or not bool(torch.isfinite(norm))
        if self.overflowed:
            return
        shrink = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1.0, self.steps / WARMUP)
        for part in _parts(learning):  # AdamW leaves weights without a gradient as they are
            for master, _, gradient in part:
                master.grad = gradient.float().mul_(shrink)
            self.optimiser.step()
            for master, working, _ in part:
                master.grad = None
                if master is not working:
                    working.copy_(master)

    def park(self) -> Parked:
        """A copy of the state in main memory."""
        states = [self.optimiser.state[master] or self._blank(master, 0.0) for master in self.master]
        moments = [state[name] for name in ("exp_avg", "exp_avg_sq") for state in states]
        updates = [float(state["step"]) for state in states]
        return Parked(HostCopy([*self.master, *moments]), updates, self.steps, self.rounds, self.overflowed)

    @torch.no_grad()
    def resume(self, parked: Parked) -> None:
        """Continue from a saved state."""
        self.steps, self.rounds, self.overflowed = parked.steps, parked.rounds, parked.overflowed
        states = [self._blank(master, count) for master, count in zip(self.master, parked.updates, strict=True)]
        for master, state in zip(self.master, states, strict=True):
            self.optimiser.state[master] = state
        moments = [state[name] for name in ("exp_avg", "exp_avg_sq") for state in states]
        parked.tensors.copy_to([*self.master, *moments])
        for master, working in zip(self.master, self.working, strict=True):
            if master is not working:
                working.copy_(master)

    def _blank(self, master: Tensor, updates: float) -> dict[str, Tensor]:
        step = torch.tensor(updates, device=master.device if self._fused else None)
        return {"step": step, "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master)}


def _parts(updates: list[Update]) -> Iterator[list[Update]]:
    """Updates in groups with a limited number of float32 gradients."""
    part: list[Update] = []
    size = 0
    for each in updates:
        if part and size + each[0].numel() > PART:
            yield part
            part, size = [], 0
        part.append(each)
        size += each[0].numel()
    yield part
