"""The modules of a sub-layer in its block: found, replaced, and stood in for where the sub-layer is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from darwinlm.model.families.modeling_darwinlm import Absent
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


class ChainedModules(nn.Module):
    """Modules of a block that are one sub-layer together, each with the result of the one before (`SubLayer.chain`).

    Their tensors have the same names as in the block, without the sub-layer's prefix.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.paths = tuple(modules)
        for path, module in modules.items():
            *owners, name = path.split(".")
            holder: nn.Module = self
            for owner in owners:
                if owner not in dict(holder.named_children()):
                    holder.add_module(owner, nn.Module())
                holder = holder.get_submodule(owner)
            holder.add_module(name, module)

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """The sub-layer's output, from the arguments of its first module."""
        first, *others = (self.get_submodule(path) for path in self.paths)
        result = first(*arguments, **named)
        for module in others:
            result = module(result[0] if isinstance(result, tuple) else result)
        return result  # type: ignore[no-any-return]


def entry_of(module: nn.Module) -> nn.Module:
    """The module of a sub-layer that its block calls with the residual stream."""
    return module.get_submodule(module.paths[0]) if isinstance(module, ChainedModules) else module


def is_removed(module: nn.Module) -> bool:
    """Whether the module of a sub-layer is the replacement that `absent` gives, or that of the modelling file."""
    return isinstance(entry_of(module), Removed | Absent)


def part_of(block: nn.Module, part: Part) -> nn.Module:
    """The module of a sub-layer in its block."""
    if part.chain:
        return chained(part, [block.get_submodule(name) for name in part.chain])
    modules = {name: getattr(block, name) for name in part.modules}
    return modules[part.name] if part.name else ParallelModules(modules)


def has_part(block: nn.Module, part: Part) -> bool:
    """Whether a block has a sub-layer, even one that was replaced."""
    return all(getattr(block, name.partition(".")[0], None) is not None for name in part.modules)


def put_part(block: nn.Module, part: Part, module: nn.Module) -> None:
    """Replace a sub-layer in its block by a module that came from `part_of` or `absent`, or is like one."""
    if isinstance(module, ChainedModules):
        for path, name in zip(module.paths, part.chain, strict=True):
            block.set_submodule(name, module.get_submodule(path))
        return
    for name, replacement in module.items() if isinstance(module, ParallelModules) else [(part.name, module)]:
        setattr(block, name, replacement)


def chained(part: Part, modules: Sequence[nn.Module]) -> ChainedModules:
    """A sub-layer of these modules (`SubLayer.chain`); those that are left out pass their input on."""
    passing = [nn.Identity() for _ in part.chain[len(modules) :]]
    names = [name.removeprefix(part.prefix) for name in part.chain]
    return ChainedModules(dict(zip(names, (*modules, *passing), strict=True)))


def absent(part: Part) -> nn.Module:
    """The replacement of a removed sub-layer; for parallel modules, one for each of them except the router."""
    if part.chain:
        return chained(part, [Removed(part)])
    if part.name:
        return Removed(part)
    router = part.experts.router if isinstance(part, Mlp) and part.experts is not None else ""
    return ParallelModules({name: Removed(part) for name in part.modules if name != router})
