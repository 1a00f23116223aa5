"""REAM: experts are merged into the kept ones instead of being removed (Jha et al. 2026, arXiv 2604.04356).

Blocks are merged in order, each on the residual stream behind the merged blocks before it. Experts with the highest
REAP scores stay. In descending order of score, each of them takes the most similar of the others, up to a maximum size
of a group. Channels of each other expert are matched one to one with those of the kept one, and the weights of a group
are averaged in proportion to the scores. The router loses the rows of experts that don't stay.

Where the paper leaves a choice open, this follows its authors' code, except that weights are compared without their
reduction to principal components.

Letters: n tokens, e experts, m residual width, d channels of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from darwinlm.database.levels import Level
from darwinlm.database.modules import ModuleReader
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.expert_tensors import as_stored, by_rows
from darwinlm.families.parts import Experts, Mlp
from darwinlm.recipe import UnitsSettings
from darwinlm.search.problem.space import Allocation
from darwinlm.streaming.experts import (
    RoutedSample,
    expert_channels,
    expert_module,
    expert_output,
    output_sizes,
    watch_experts,
)
from darwinlm.streaming.stream import BlockStream
from darwinlm.streaming.streamed import StreamedDecoder
from darwinlm.surgery.stitch import chosen_levels, stitched_blocks
from lab.comparison.importance import ExpertScores, Progress


class MergedReader(ModuleReader):
    """Keeps the first expert of every group, with the merged weights of its group.

    Attributes:
        groups: Groups of experts by block.
        merged: Tensors of a block's experts by block, then by name in it.
    """

    def __init__(self, checkpoint: Checkpoint, units: UnitsSettings) -> None:
        super().__init__(checkpoint, units)
        self.groups: dict[int, list[list[int]]] = {}
        self.merged: dict[int, dict[str, Tensor]] = {}

    def best_experts(self, block: int, _: Level) -> Tensor:
        """The first expert of every group, [e] ascending."""
        return torch.tensor(sorted(first for first, *_ in self.groups[block]))

    def tensors(self, block: int, name: str = "") -> dict[str, Tensor]:
        """Tensors of a block whose name in it starts with `name`, which is removed from the names."""
        merged = self.merged.get(block, {}).items()
        return super().tensors(block, name) | {
            key.removeprefix(name): tensor for key, tensor in merged if key.startswith(name)
        }


@torch.no_grad()
def merge_experts(
    stream: BlockStream,
    tokens: Tensor,
    units: UnitsSettings,
    allocation: Allocation,
    keep: Callable[[Tensor], Tensor] = torch.clone,
    progress: Progress = lambda done, total: None,
) -> MergedReader:
    """Merge the experts of every block to the numbers of an allocation; `keep` puts every tensor in its place.

    The stream of `tokens`, before the first block, is used up.
    """
    checkpoint, part = stream.checkpoint, stream.checkpoint.family.mlp
    reader = MergedReader(checkpoint, units)
    levels = chosen_levels(reader.modules, allocation)
    smaller, weights = stitched_blocks(reader, allocation)
    small = StreamedDecoder(smaller, tokens, dtype=stream.dtype, device=stream.device, weights=weights)
    for block in range(checkpoint.n_blocks):
        stream.load(block)
        module = stream.decoder.blocks[block]
        mixture = expert_module(module, part)
        if mixture is not None and part.experts is not None:
            scores = ExpertScores(mixture, output_sizes(mixture, part.experts)[0])
            sample = RoutedSample(module, part, lambda _: None)
            with sample.watch(), watch_experts(mixture, scores.note):
                for index, hidden in enumerate(stream.hidden):
                    stream.decoder.run_block(block, hidden, stream.arguments(index, block))
            added = scores.added.float()
            alike = similarity(mean_outputs(mixture, part.experts, sample), sample.logits)
            reader.groups[block] = grouped(added, alike, levels[block, "mlp"].experts)
            merged = merged_experts(mixture, part, reader.tensors(block), sample.hidden, reader.groups[block], added)
            reader.merged[block] = {name: keep(tensor) for name, tensor in merged.items()}
        stream.unload(block)
        small.load(block)
        for index, hidden in enumerate(stream.hidden):
            stream.move(block, index, small.run_block(block, hidden, stream.arguments(index, block)))
        small.unload(block)
        progress(block + 1, checkpoint.n_blocks)
    return reader


def mean_outputs(mixture: Any, experts: Experts, sample: RoutedSample) -> Tensor:
    """Mean over all tokens of each expert's output times its score among all experts, [e, m] float32."""
    scores = sample.logits.sigmoid() if experts.scores == "sigmoid" else sample.logits.softmax(-1)
    outputs = (expert_output(mixture, sample.hidden, expert).float() for expert in range(scores.shape[1]))
    return torch.stack([scores[:, expert] @ output / len(scores) for expert, output in enumerate(outputs)])


def similarity(outputs: Tensor, logits: Tensor) -> Tensor:
    """Similarity of experts, [e, e] from 0 to 1, from their mean outputs [e, m] and the router's logits [n, e].

    It is the mean of that of the outputs, by cosine, and of that of the logits over all tokens, by distance.
    """
    unit, apart = normalize(outputs, dim=-1), distances(logits.T, logits.T)
    return ((1 + unit @ unit.T) / 2 + 1 - apart / apart.max().clamp_min(torch.finfo(apart.dtype).tiny)) / 2


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of rows [i, x] and rows [j, x], all scaled to norm 1, [i, j]."""
    return torch.cdist(normalize(a, dim=-1), normalize(b, dim=-1))


def grouped(scores: Tensor, alike: Tensor, count: int) -> list[list[int]]:
    """Groups of experts around the best `count` ones, which come first in theirs.

    A group has at most half as many experts as are removed, as in the paper (16 for 128 -> 96, 32 for 128 -> 64), or
    more if some were left otherwise.
    """
    ranked = scores.argsort(descending=True, stable=True).tolist()
    left = set(ranked[count:])
    size = max(-(-len(left) // 2), -(-len(ranked) // count))
    groups = []
    for expert in ranked[:count]:
        nearest = [other for other in alike[expert].argsort(descending=True, stable=True).tolist() if other in left]
        groups.append([expert, *nearest[: size - 1]])
        left.difference_update(groups[-1])
    return groups


def merged_experts(
    mixture: Any, part: Mlp, tensors: dict[str, Tensor], hidden: Tensor, groups: Sequence[list[int]], scores: Tensor
) -> dict[str, Tensor]:
    """Tensors of a mixture's experts by name in the block, in which those that stay have the mean of their group.

    `tensors` are those of the block, `hidden` are inputs of the experts, [n, m], and scores are [e].
    """
    names = part.experts
    assert names is not None
    inside = f"{part.prefix}{names.name}."
    old = {
        name.removeprefix(inside): by_rows(part, name.removeprefix(part.prefix), tensor).float()
        for name, tensor in tensors.items()
        if name.startswith(inside)
    }
    new = {leaf: tensor.clone() for leaf, tensor in old.items()}
    positive = scores.where(scores > 0, scores[scores > 0].min())  # so that unused experts count a little
    for first, *others in groups:
        if not others:
            continue
        share, *shares = (positive[[first, *others]] / positive[[first, *others]].sum()).tolist()
        for tensor in new.values():
            tensor[first] *= share
        channels, rows = expert_channels(mixture, names, hidden, first).float().T, _rows(old, names, first)
        for expert, share in zip(others, shares, strict=True):
            cost = distances(channels, expert_channels(mixture, names, hidden, expert).float().T).cpu()
            cost += distances(rows, _rows(old, names, expert)).cpu()
            places = torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
            for leaf, tensor in new.items():
                tensor[first] += share * permuted(names, leaf, old[leaf][expert], places.to(tensor.device))
    stored = {name: tensors[name].dtype for name in tensors if name.startswith(inside)}
    return {
        name: as_stored(part, name.removeprefix(part.prefix), new[name.removeprefix(inside)].to(dtype))
        for name, dtype in stored.items()
    }


def _rows(tensors: dict[str, Tensor], names: Experts, expert: int) -> Tensor:
    """All weights of each channel of an expert, [d, c]."""
    inputs = [part for name, rows in names.segments.items() for part in tensors[name][expert].chunk(len(rows))]
    return torch.cat([*inputs, tensors[names.output][expert].T], dim=1)


def permuted(names: Experts, leaf: str, tensor: Tensor, places: Tensor) -> Tensor:
    """A tensor of one expert with its channels in another order, [r, c], or [r] of a bias; places are [d]."""
    rows = names.rows_of(leaf)
    if rows:
        return torch.cat([part[places] for part in tensor.chunk(len(rows))])
    return tensor[:, places] if leaf == names.output else tensor
