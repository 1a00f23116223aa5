"""First-order change of the loss if one module of an allocation moves to another level.

The gradient g of KL(dense ‖ allocation) is propagated through the allocation's blocks. On the same stream, a module at
another level would have the output y' = W_k x_k. Here x is the input of the dense module's output projection. With
C = Σ g xᵀ over tokens, [r, d],

    loss(level) - loss(gone) ≈ ⟨W_k, C_k⟩ = Σ_{j < k} ⟨T_j, (C_π L⁻ᵀ)_j⟩,

beside the bias, and one triangular solve gives all widths (`database/factors.py` has the letters). Only differences
between the levels of a module are meaningful, and only near the allocation, since they leave out curvature.

A norm behind the module doesn't see the length of y, so a derivative in front of it is zero along y, and removing the
module would seem free. There g is the gradient behind the norm, and loss(level) - loss(gone) ≈ Σ ⟨g, norm(W_k x + b)⟩
over tokens, b the bias. The outputs of all widths are partial sums, W_k x = Σ_{j < k} T_j (L⁻¹ x_π)_j.

First-order (Taylor) importance was proposed for single weights and channels (Molchanov et al. 2019, arXiv 1906.10771).
Here it applies to whole levels, with the weights of each level.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from darwinlm.model.families.block_parts import Removed, entry_of
from darwinlm.model.objective.objective import Window
from darwinlm.model.units.space import Allocation
from darwinlm.model.walk.decoder import BlockArguments, input_of
from darwinlm.model.walk.hidden import HiddenStates
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact
from darwinlm.runtime.errors import NumericsError
from darwinlm.runtime.memory import memory_of
from darwinlm.steps.database.factors import NestedFactors
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.search.fitness import Fitness


class Gradients:
    """First-order losses of all levels around an allocation, on the text of a fitness, whose clock can stop it."""

    def __init__(self, fitness: Fitness, database: DatabaseReader) -> None:
        self.fitness = fitness
        self.placed, self.decoder, self.database = fitness.placed, fitness.decoder, database

    def around(self, allocation: Allocation, window: Window) -> list[list[float]]:
        """First-order losses of every level, in nats per token; zero for a mixture, where routing would change.

        Processes share the text; up to rounding, the result does not depend on their number. Where they share blocks,
        the sums of a block's modules go to its owner, which solves for their levels. `window` selects sequences of the
        text.

        Raises:
            NumericsError: The gradient isn't finite.
            TimeLimitError: The limit of the fitness's clock has passed.
        """
        pieces = list(self.fitness.pieces(*window))
        own = memory_of(self.decoder.device).survive(self._of_pieces, allocation, parallel.mine(pieces))
        total = torch.stack(parallel.gather(own)).sum(0)
        if not bool(torch.isfinite(total).all()):
            raise NumericsError(
                "the gradient of the best allocation's loss isn't finite: try compute.dtype=float32, or "
                "search.method=paper"
            )
        split = torch.split(
            total / self.fitness.count(window), [len(module.levels) for module in self.placed.space.modules]
        )
        return [row.tolist() for row in split]

    def _of_pieces(self, allocation: Allocation, pieces: Sequence[Window]) -> Tensor:
        """Concatenated slopes of all levels of all modules, summed over the tokens of the pieces, float64.

        The text moves through the blocks together, and its gradients back through them.
        """
        rows = [torch.zeros(len(module.levels), dtype=torch.float64) for module in self.placed.space.modules]
        if not pieces and self.decoder.owner is None:
            return torch.cat(rows)
        own = [allocation] if pieces else []
        parts = [self.fitness.tokens[slice(*piece)] for piece in pieces]
        arguments = [self.decoder.block_arguments(part) for part in parts]
        hidden = self._states(self.decoder.embed(part) for part in parts)
        inputs: list[HiddenStates] = []

        @contextmanager
        def placed_at(block: int) -> Iterator[None]:
            with self.placed.visiting(block):
                self.placed.share(block, [allocation], own)
                for present in own:
                    self.placed.put(block, present)
                yield

        @contextmanager
        def visiting(block: int) -> Iterator[None]:
            inputs.append(hidden.copied(self.fitness.memory))
            with placed_at(block):
                yield

        self.decoder.move(hidden, arguments, visiting, self.fitness.clock.check)
        with self.decoder.with_head():
            gradients = self._states(map(self.fitness.reference.gradient, pieces, hidden))

        @contextmanager
        def back_at(block: int) -> Iterator[None]:
            with placed_at(block):
                places = [index for index, module in enumerate(self.placed.space.modules) if module.block == block]
                watched = [one for one in map(self._watched, places) if one is not None]
                with ExitStack() as hooks:
                    for one in watched:
                        one.watch(hooks)
                    yield
                for index, slopes_of in self._of_block(block, watched):
                    rows[index] = self._levels(index, slopes_of)

        def given(index: int, block: int) -> BlockArguments:
            return arguments[index][block]

        for _ in self.decoder.back(inputs, gradients, given, back_at, self.fitness.clock.check):
            pass
        return torch.cat(rows)

    def _states(self, streams: Iterable[Tensor]) -> HiddenStates:
        """The stream of some pieces of the text between two blocks, in an allowed place."""
        return HiddenStates(streams, self.fitness.reference.dense.numel(), self.fitness.memory)

    def _watched(self, index: int) -> _Watched | None:
        """A module whose slopes can be computed; None for fixed modules and mixtures."""
        module, family = self.placed.space.modules[index], self.decoder.family
        if len(module.levels) == 1 or self.database.shapes[module.place].sizes.experts:
            return None
        present = self.decoder.module(module.block, module.kind)
        part = family.module(module.kind)
        norm = None if part.post_norm is None else getattr(self.decoder.blocks[module.block], part.post_norm)
        return _Watched(index, present, self.placed.dense[index], part.output, norm)

    def _of_block(self, block: int, watched: Sequence[_Watched]) -> Iterator[tuple[int, _SlopesOf]]:
        """Modules whose slopes this process computes: its own ones, and those in front of a norm."""
        for one in watched:
            if one.norm is not None and one.gradients:
                yield one.index, partial(self._behind_norm, one, one.norm)
        owner = self.decoder.owner
        plain = [one for one in watched if one.norm is None and (one.gradients or owner is not None)]
        sums = [self._sums(one) for one in plain]
        if owner is not None:
            parallel.meet(None)
            sums = [(parallel.reduce(C, owner(block)), parallel.reduce(shift, owner(block))) for C, shift in sums]
            if owner(block) != parallel.place():
                return
        for one, of_module in zip(plain, sums, strict=True):
            yield one.index, partial(_solved, of_module)

    def _sums(self, watched: _Watched) -> _Sums:
        """Sums of a module over the tokens of this process, which may have none."""
        output, device = self._output(watched.index), self.database.device
        if not watched.gradients:
            products = torch.zeros(output.weight.shape, dtype=torch.float32, device=device)
            return products, torch.zeros(1, dtype=torch.float64, device=device)
        x, g = torch.cat(watched.inputs), torch.cat(watched.gradients)
        products = (g.T @ x).to(device, torch.float32)
        bias = 0.0 if output.bias is None else output.bias.float()
        return products, exact(g.float() * bias).sum(dtype=torch.float64)[None].to(device)

    def _output(self, index: int) -> nn.Linear:
        module = self.placed.space.modules[index]
        output = self.placed.dense[index].get_submodule(self.decoder.family.module(module.kind).output)
        return cast("nn.Linear", output)

    def _levels(self, index: int, slopes_of: _SlopesOf) -> Tensor:
        """Slope of every level of a module, float64, from those of some widths of a variant."""
        module, reader = self.placed.space.modules[index], self.database
        slopes = torch.zeros(len(module.levels), dtype=torch.float64)
        by_variant: dict[int, dict[int, int]] = {}
        for at, level in enumerate(module.levels):
            if level.sizes.width:
                by_variant.setdefault(reader.variant(module.block, module.kind, level), {})[level.sizes.width] = at
        for variant, places in by_variant.items():
            (factors,) = reader.factors(module.block, module.kind, variant)
            widths = sorted(places)
            slopes[[places[width] for width in widths]] = slopes_of(factors, widths).cpu()
        return slopes

    def _behind_norm(self, watched: _Watched, norm: nn.Module, factors: NestedFactors, widths: list[int]) -> Tensor:
        """Slopes of some widths of a module in front of a norm, on the tokens of this process."""
        x, g = torch.cat(watched.inputs).float(), torch.cat(watched.gradients).float()
        bias = self._output(watched.index).bias
        at_widths = outputs(factors, x.to(self.database.device), widths)
        behind = (norm(y.to(g.device) + (0.0 if bias is None else bias.float())) for y in at_widths)
        return torch.stack([exact(y * g).sum(dtype=torch.float64) for y in behind])


@torch.no_grad()
def inner_products(factors: NestedFactors, C: Tensor) -> Tensor:
    """⟨W_k, C_k⟩ for every width k: optimal weights times the same columns of a matrix C, [r, d] floating.

    Returns [p + 1] float64, zero first, for factors that may keep p of the d columns.
    """
    solved = torch.linalg.solve_triangular(factors.factor.T, C.float()[:, factors.columns], upper=True, left=False)
    sums = torch.linalg.vecdot(factors.target, solved, dim=0).double().cumsum(0)
    return torch.cat([sums.new_zeros(1), sums])


@torch.no_grad()
def outputs(factors: NestedFactors, x: Tensor, widths: Sequence[int]) -> Iterator[Tensor]:
    """Outputs W_k x, [n, r] float32, for ascending widths k > 0 and inputs x, [n, d] floating."""
    solved = torch.linalg.solve_triangular(factors.factor, x.float()[:, factors.columns].T, upper=False)
    y = solved.new_zeros(len(x), len(factors.target))
    for start, end in itertools.pairwise((0, *widths)):
        y = y + solved[start:end].T @ factors.target[:, start:end].T
        yield y


_SlopesOf = Callable[[NestedFactors, list[int]], Tensor]
"""Slopes of some widths of a module, from the factors of a variant."""
_Sums = tuple[Tensor, Tensor]
"""C, [r, d] float32, and the part of the bias in all slopes, [1] float64."""


def _solved(sums: _Sums, factors: NestedFactors, widths: list[int]) -> Tensor:
    """Slopes of some widths of a module without a norm."""
    C, shift = sums
    return inner_products(factors, C)[widths] + shift


class _Watched:
    """Hooks on a module: gradients at its output, and on the same stream the input of the dense output projection.

    The output is that of the norm behind the module, if there is one. `inputs` [n, d] and `gradients` [n, r] have an
    entry for each batch that went back.
    """

    def __init__(
        self, index: int, present: nn.Module, dense: nn.Module, projection: str, norm: nn.Module | None
    ) -> None:
        self.index = index
        self.present = present
        self.dense = dense
        self.projection = projection
        self.norm = norm
        self.inputs: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._input: Tensor | None
        self._call: tuple[tuple[Tensor, ...], BlockArguments]

    def watch(self, hooks: ExitStack) -> None:
        """Install the hooks."""

        def called(_: nn.Module, arguments: tuple[Tensor, ...], named: BlockArguments) -> None:
            self._call, self._input = (arguments, named), None

        def projected(_: nn.Module, __: object, output: Tensor) -> None:
            output.register_hook(self._collect)  # type: ignore[no-untyped-call]

        def absent(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
            arguments, named = self._call
            hidden = arguments[0] if arguments else cast("Tensor", named["hidden_states"])
            zeros = 0 * hidden  # with a gradient
            zeros.register_hook(self._collect)  # type: ignore[no-untyped-call]
            return (zeros, *output[1:]) if isinstance(output, tuple) else zeros

        entry = entry_of(self.present)
        gone = isinstance(entry, Removed)
        last = self.norm or (entry if gone else self.present.get_submodule(self.projection))
        hooks.enter_context(entry.register_forward_pre_hook(called, with_kwargs=True))
        hooks.enter_context(last.register_forward_hook(absent if gone else projected))
        if self.present is self.dense:
            hooks.enter_context(self.dense.get_submodule(self.projection).register_forward_pre_hook(self._note))

    def _note(self, _: nn.Module, given: tuple[Tensor]) -> None:
        self._input = given[0].detach()

    @torch.no_grad()
    def _collect(self, gradient: Tensor) -> None:
        if self._input is None:
            arguments, named = self._call
            self._input = input_of(self.dense.get_submodule(self.projection), lambda: self.dense(*arguments, **named))
        self.inputs.append(self._input.flatten(0, 1))
        self.gradients.append(gradient.flatten(0, 1))
