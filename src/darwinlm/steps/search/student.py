"""One candidate in training: its modules, and AdamW on float32 master weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import nn

WARMUP = 4
"""Warm-up steps, because the first steps of AdamW all have full size."""

CLIP = 1.0
"""Largest norm of a gradient."""


class Student:
    """A copy of one candidate's modules, with master weights and an optimiser.

    The modules of the candidate, in the order of the allocation, are not changed. `working` are the weights of the
    passes, `master` those of AdamW, float32. Once a gradient isn't finite, it has `overflowed`, and its weights stay.
    `rate` is the learning rate after the warm-up.
    """

    def __init__(self, modules: Iterable[nn.Module], rate: float) -> None:
        self.rate = rate
        self.steps = 0
        self.rounds = 0
        self.overflowed = False
        self.modules = [copy.deepcopy(module).requires_grad_(requires_grad=True) for module in modules]
        self.working = [weight for module in self.modules for weight in module.parameters()]
        self.master = [p.detach().float() if p.dtype != torch.float32 else p for p in self.working]

    @cached_property
    def optimiser(self) -> torch.optim.AdamW:
        """The optimiser; its two moments are created in the first step."""
        fused = self.working[0].device.type == "cuda" or None
        return torch.optim.AdamW(self.master, lr=self.rate, betas=(0.9, 0.95), weight_decay=0.0, fused=fused)

    @torch.no_grad()
    def step(self) -> None:
        """Update the master weights with the accumulated gradients, and copy them to the working weights."""
        gradients = [weight.grad for weight in self.working]
        norms = [torch.linalg.vector_norm(g, dtype=torch.float32) for g in gradients if g is not None]
        if not norms:
            return
        for weight in self.working:
            weight.grad = None
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.steps += 1
        self.overflowed = self.overflowed or not bool(torch.isfinite(norm))
        if self.overflowed:
            return
        shrink = (CLIP / (norm + 1e-6)).clamp(max=1.0)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * min(1.0, self.steps / WARMUP)
        for master, working, gradient in zip(self.master, self.working, gradients, strict=True):
            if gradient is not None:  # one at a time in float32: AdamW leaves weights without a gradient as they are
                master.grad = gradient.float().mul_(shrink)
                self.optimiser.step()
                master.grad = None
                if master is not working:
                    working.copy_(master)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and the optimiser's state while no gradients are there."""
        own = sum(w.nbytes for w, master in zip(self.working, self.master, strict=True) if w is not master)
        return own + 3 * sum(master.nbytes for master in self.master)

    def move(self, device: torch.device) -> None:
        """Take weights and the optimiser's state to another device."""
        if not self.working or self.working[0].device == device:
            return
        states = [self.optimiser.state[master] for master in self.master]
        masters = [None if master is w else master for w, master in zip(self.working, self.master, strict=True)]
        self.modules = [module.to(device) for module in self.modules]
        self.working = [weight for module in self.modules for weight in module.parameters()]
        self.master = [
            w if master is None else master.to(device) for w, master in zip(self.working, masters, strict=True)
        ]
        del self.optimiser
        for master, state in zip(self.master, states, strict=True):
            self.optimiser.state[master] = {name: value.to(device) for name, value in state.items()}
