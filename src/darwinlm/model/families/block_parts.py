"""The modules of a sub-layer in its block: found, replaced, and stood in for where the sub-layer is removed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from darwinlm.model.families.parts import Mlp, Part


class Removed(nn.Module):
    """Replaces a removed sub-layer and returns zeros, which its block adds."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.pair = part.pair

    def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor, None]:
        """Zeros of the residual stream's shape, in the form of the sub-layer's result."""
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.pair else nothing


class ParallelModules(nn.ModuleDict):
    """Modules of a block that are one sub-layer together, by name: experts and an MLP that run in parallel."""


def part_of(block: nn.Module, part: Part) -> nn.Module:
    """The module of a sub-layer in its block."""
    modules = {name: getattr(block, name) for name in part.modules}
    return modules[part.name] if part.name else ParallelModules(modules)


def has_part(block: nn.Module, part: Part) -> bool:
    """Whether a block has a sub-layer, even one that was replaced."""
    return all(getattr(block, name, None) is not None for name in part.modules)


def put_part(block: nn.Module, part: Part, module: nn.Module) -> None:
    """Replace a sub-layer in its block by a module that came from `part_of` or `absent`, or is like one."""
    for name, replacement in module.items() if isinstance(module, ParallelModules) else [(part.name, module)]:
        setattr(block, name, replacement)


def absent(part: Part) -> nn.Module:
    """The replacement of a removed sub-layer; for parallel modules, one for each of them except the router."""
    if part.name:
        return Removed(part)
    router = part.experts.router if isinstance(part, Mlp) and part.experts is not None else ""
    return ParallelModules({name: Removed(part) for name in part.modules if name != router})
