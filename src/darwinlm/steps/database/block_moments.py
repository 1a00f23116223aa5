"""Second moments of the inputs of every output projection, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from darwinlm.model.families.expert_tensors import by_rows
from darwinlm.model.families.parts import Experts, ModuleKind
from darwinlm.model.families.shapes import output_name
from darwinlm.model.walk.expert_inputs import (
    Routing,
    expert_inputs,
    expert_module,
    mixture_module,
    output_sizes,
    watch_experts,
)
from darwinlm.model.walk.moments import ExpertMoments, SecondMoment
from darwinlm.model.walk.outputs import norm_divisor, output_projection
from darwinlm.model.walk.stream import BlockStream
from darwinlm.runtime import parallel

OutputMoments = Callable[[int], Mapping[ModuleKind, Tensor]]
"""Second moments [r, r] of the output gradients of a block's modules, for weighted removal orders."""


@dataclass
class BlockMoments:
    """Calibration results of one block.

    Attributes:
        moments: E[x xᵀ] of the output projection's input, [d, d] float32, for each module that exists and may be cut;
            [e, d, d] for the experts of a mixture.
        weights: Weights of the output projections in the checkpoint's type, by name inside the block.
        shared: E[y yᵀ] of the shared expert's output, [r, r]; None without one.
    """

    block: int
    moments: dict[ModuleKind, Tensor]
    weights: dict[str, Tensor]
    shared: Tensor | None = None


def stream_moments(
    stream: BlockStream, *, skip: int = 0, owner: Callable[[int], int] = lambda block: 0
) -> Iterator[BlockMoments]:
    """Second moments of every block in order; the first `skip` blocks are only run.

    Of several processes, each with a stream over a part of the text, the `owner` of a block reads it and gets the
    moments over all of it, and the others get empty ones. In front of a norm the inputs are divided by what the norm
    divides the output by, so that errors are those behind it.
    """
    stream.decoder.share(owner)
    for block in range(stream.checkpoint.n_blocks):
        with parallel.agree():
            weights, moments, shared = _run_watched(stream, block, watch=block >= skip)
        stream.decoder.unload(block)
        if block >= skip:
            total = partial(parallel.reduce, to=owner(block))
            totals = {kind: moment.take(total) for kind, moment in moments.items()}
            of_shared = None if shared is None else shared.take(total)
            is_mine = owner(block) == parallel.place()
            yield BlockMoments(block, totals, weights, of_shared) if is_mine else BlockMoments(block, {}, {})
            del totals, of_shared


def _run_watched(
    stream: BlockStream, block: int, *, watch: bool
) -> tuple[dict[str, Tensor], dict[ModuleKind, SecondMoment | ExpertMoments], SecondMoment | None]:
    """Move the stream through a block, which stays loaded.

    Returns the weights of its output projections, moments of their inputs, and that of a shared expert's output.
    """
    family = stream.checkpoint.family
    weights = stream.decoder.load(block, *range(block + 1, stream.checkpoint.n_blocks))
    outputs = [(part, output_name(part, weights)) for part in (family.attention, family.mlp)]
    moments: dict[ModuleKind, SecondMoment | ExpertMoments] = {}
    shared: SecondMoment | None = None
    with ExitStack() as hooks:
        mixture = expert_module(stream.decoder.blocks[block], family.mlp)
        if mixture is not None and watch:
            experts = family.mlp.experts
            assert experts is not None
            count, residual, width = output_sizes(mixture, experts)
            moments["mlp"] = of_experts = ExpertMoments(count, width, stream.device)
            divisor = partial(norm_divisor, stream.checkpoint, "mlp")

            def watch_mixture(routing: Routing, output: Tensor, experts: Experts = experts) -> None:
                of_experts.count += len(routing.hidden)
                by = divisor(output)
                for expert in torch.unique(routing.chosen).tolist():
                    token, x = expert_inputs(mixture, experts, routing, expert)
                    of_experts.add(expert, x if by is None else x / by[token])

            hooks.enter_context(watch_experts(mixture, watch_mixture))
            shared_expert = mixture_module(stream.decoder.blocks[block], family.mlp, experts.shared)
            if shared_expert is not None:
                of_shared = shared = SecondMoment(residual, device=stream.device)

                def watch_shared(_: nn.Module, __: object, y: Tensor) -> None:
                    by = divisor(y)
                    of_shared.add(y if by is None else y.float() / by)

                hooks.enter_context(shared_expert.register_forward_hook(watch_shared))
        for kind in family.cut_kinds(stream.checkpoint.config, block) if watch else ():
            output = output_projection(stream.decoder.blocks[block], family, kind)
            if output is not None:
                moment = moments[kind] = SecondMoment(output.weight.shape[1], device=stream.device)

                def watch_inputs(
                    _: nn.Module,
                    inputs: tuple[Tensor, ...],
                    y: Tensor,
                    to: SecondMoment = moment,
                    kind: ModuleKind = kind,
                ) -> None:
                    divisor = norm_divisor(stream.checkpoint, kind, y)
                    to.add(inputs[0] if divisor is None else inputs[0].float() / divisor)

                hooks.enter_context(output.register_forward_hook(watch_inputs))
        stream.run(block)
    # Copies, because a tensor keeps the whole mapped file in memory.
    weights = {
        name: by_rows(part, name.removeprefix(part.prefix), weights[name]).clone()
        for part, name in outputs
        if name is not None
    }
    return weights, moments, shared
