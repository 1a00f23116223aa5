"""Importance scores of units and blocks without a pruning database: magnitudes, activations, block influence.

Letters: t tokens, s sequences, x a unit's output, h the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.parts import RowUnit
from darwinlm.model.families.shapes import ModuleShape, module_shapes, row_segments
from darwinlm.model.layer_sizes import Place
from darwinlm.model.walk.expert_inputs import Routing, expert_module, output_sizes, watch_experts
from darwinlm.model.walk.outputs import output_projection
from darwinlm.model.walk.stream import BlockStream
from darwinlm.runtime.compute import exact
from lab.comparison.ranked import UnitScores

Progress = Callable[[int, int], None]


@torch.no_grad()
def magnitude_scores(checkpoint: Checkpoint) -> dict[Place, UnitScores]:
    """Sum of each unit's squared weights: its rows in input projections and its columns in the output projection.

    The classic magnitude criterion (Han et al. 2015, arXiv 1506.02626) on structures, as in LLM-Pruner's L2 baseline
    (arXiv 2305.11627).
    """
    scores: dict[Place, UnitScores] = {}
    for shape in module_shapes(checkpoint):
        if shape.sizes.experts or shape.fixed:
            continue
        part = checkpoint.family.module(shape.kind)
        inside = checkpoint.read(checkpoint.block_prefix(shape.block), dtype=torch.float32)
        energy: dict[RowUnit, Tensor] = {}
        for name in shape.tensors:
            inner = name.removeprefix(part.prefix)
            if name == shape.output:
                key: RowUnit = "channel" if shape.kind == "mlp" else "query"
                energy[key] = energy.get(key, torch.zeros(shape.sizes.width)) + inside[name].square().sum(0)
                continue
            segments = row_segments(part, inner)
            if segments:
                rows = inside[name].reshape(len(inside[name]), -1).square().sum(1)
                pieces = torch.split(rows, [shape.sizes.rows[segment] for segment in segments])
                for segment, values in zip(segments, pieces, strict=True):
                    if segment == "gated_query":
                        segment, values = "query", values.view(-1, 2, shape.sizes.head_dim).sum(1).flatten()  # noqa: PLW2901
                    energy[segment] = energy.get(segment, torch.zeros(len(values))) + values
        if shape.kind == "mlp":
            scores[shape.block, "mlp"] = UnitScores(energy["channel"])
        else:
            heads = energy["query"].view(shape.sizes.groups, shape.sizes.heads_per_group, shape.sizes.head_dim).sum(2)
            scores[shape.block, "attention"] = UnitScores(
                heads, energy["key_value"].view(shape.sizes.groups, -1).sum(1)
            )
    return scores


@torch.no_grad()
def activation_scores(stream: BlockStream, progress: Progress = lambda done, total: None) -> dict[Place, UnitScores]:
    """Size of each unit's output on a text: mean over the tokens of a sequence, L2 norm over sequences.

    Minitron's importance with its best aggregation (arXiv 2407.14679, section 2.2): ‖x‖₂ of a head, |x| of a channel.
    Channels are measured after the gate, at the input of the output projection. The stream, before the first block, is
    used up.
    """
    checkpoint = stream.checkpoint
    by_place = {(shape.block, shape.kind): shape for shape in module_shapes(checkpoint)}
    sums: dict[Place, Tensor] = {}
    for block, hooks in _blocks(stream, progress):
        for kind in checkpoint.family.cut_kinds(checkpoint.config, block):
            output = output_projection(stream.decoder.blocks[block], checkpoint.family, kind)
            if output is not None:
                add = _adder(sums, (block, kind), by_place[block, kind])
                hooks.callback(output.register_forward_pre_hook(add).remove)
    scores = {}
    for place, total in sums.items():
        shape, score = by_place[place], total.sqrt().float().cpu()
        scores[place] = UnitScores(
            score if shape.kind == "mlp" else score.view(shape.sizes.groups, shape.sizes.heads_per_group)
        )
    return scores


def _blocks(stream: BlockStream, progress: Progress) -> Iterator[tuple[int, ExitStack]]:
    """Each block in memory, with a stack for hooks; it is run after the loop's body, and the stack is then closed."""
    for block in stream.walk():
        with ExitStack() as hooks:
            yield block, hooks
            stream.run(block)
        progress(block + 1, stream.checkpoint.n_blocks)


def _adder(sums: dict[Place, Tensor], place: Place, shape: ModuleShape) -> Callable[[Any, tuple[Tensor, ...]], None]:
    def add(_: Any, inputs: tuple[Tensor, ...]) -> None:
        x = exact(inputs[0]).double()  # [s, t, width]
        if shape.kind == "attention":
            x = x.view(*x.shape[:2], -1, shape.sizes.head_dim).norm(dim=-1)
        sizes = x.abs().mean(1).square().sum(0)
        sums[place] = sums[place] + sizes if place in sums else sizes

    return add


class ExpertScores:
    """Statistics of a mixture's experts on some text."""

    def __init__(self, module: Any, count: int) -> None:
        self.module = module
        self.asked = torch.zeros(count, dtype=torch.float64)
        self.sums = torch.zeros(count, dtype=torch.float64)

    def note(self, routing: Routing, _: Tensor) -> None:
        """Add the routing of a call."""
        for expert in torch.unique(routing.chosen).tolist():
            token, place = torch.where(routing.chosen == expert)
            norms = _expert_output(self.module, routing.hidden[token], expert).float().norm(dim=-1)
            self.asked[expert] += len(token)
            weighted = exact(norms * routing.weights[token, place].float())
            self.sums[expert] += float(weighted.sum(dtype=torch.float64))

    @property
    def added(self) -> Tensor:
        """Mean of the router's weight times the norm of the expert's output, over its tokens, [e]."""
        return self.sums / self.asked.clamp(min=1)


def _expert_output(module: Any, hidden: Tensor, expert: int) -> Tensor:
    """Unweighted output of one expert on all given tokens, [n, m] -> [n, m]."""
    chosen = torch.full((len(hidden), 1), expert, device=hidden.device)
    # Calling the module itself would trigger its hooks.
    output: Tensor = module.forward(hidden, chosen, torch.ones_like(chosen, dtype=hidden.dtype))
    return output


@torch.no_grad()
def expert_scores(stream: BlockStream, progress: Progress = lambda done, total: None) -> dict[int, ExpertScores]:
    """Frequency of each expert, and its contribution to the output (REAP, arXiv 2510.13999), by block.

    The stream, before the first block, is used up.
    """
    part = stream.checkpoint.family.mlp
    by_block: dict[int, ExpertScores] = {}
    for block, hooks in _blocks(stream, progress):
        mixture = expert_module(stream.decoder.blocks[block], part)
        if mixture is not None and part.experts is not None:
            by_block[block] = ExpertScores(mixture, output_sizes(mixture, part.experts)[0])
            hooks.enter_context(watch_experts(mixture, by_block[block].note))
    return by_block


@torch.no_grad()
def block_influence(stream: BlockStream, progress: Progress = lambda done, total: None) -> list[float]:
    """Rotation of the residual stream by each block: 1 - mean over tokens of cos(h before, h after).

    ShortGPT (arXiv 2403.03853, equation 1). The stream, before the first block, is used up.
    """
    influence = []
    for block in stream.walk():
        before = list(stream.hidden)
        stream.run(block)
        total, count = 0.0, 0
        for old, new in zip(before, stream.hidden, strict=True):
            cosine = torch.nn.functional.cosine_similarity(exact(old).double(), exact(new).double(), dim=-1)
            total += float(cosine.sum())
            count += cosine.numel()
        influence.append(1 - total / count)
        progress(block + 1, stream.checkpoint.n_blocks)
    return influence
