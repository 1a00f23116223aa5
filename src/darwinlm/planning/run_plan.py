"""The plan of a run: its table, with times from one measured rate, and a check of its memory before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.planning.step_costs import Row, rows_of
from darwinlm.runtime.amounts import size
from darwinlm.runtime.compute import await_device
from darwinlm.runtime.errors import DeviceMemoryError
from darwinlm.runtime.memory import all_bytes, memory_of
from darwinlm.steps.run_sizes import Sizes

DEVICES = {
    "h100": (989, 80), "h200": (989, 141), "a100": (312, 80), "a100-40gb": (312, 40), "l40s": (362, 48),
    "rtx4090": (165, 24), "rtx3090": (71, 24), "rtx4080": (97.5, 16), "rtx4060": (30, 8),
}  # fmt: skip
"""Dense bfloat16 TFLOP/s as NVIDIA states them, and GiB of memory."""
OF_PEAK = (0.02, 0.5)
"""Shares of a card's peak between which a run is likely to work."""
ENOUGH = 2.0
"""Seconds after which no larger batch is timed."""
REMEDIES = {
    "activations": "lower compute.batch_tokens",
    "weights in float32": "give the model's original folder or hub id",
    "candidates": "train no candidates in the search (training_tokens of search.rounds), or choose a smaller budget",
    "keys and values": "give text of your own with --text",
    "whole models": "give text of your own with --text, and train no candidates in the search",
    "weights, gradients and moments": "set recovery.sharding=fsdp on several devices",
    "logits": "lower compute.batch_tokens, or the vocabulary with --vocab",
    "candidates' streams": "lower the tokens of search.rounds",
    "streams": "lower text.calibration_tokens and refit.tokens",
}
"""What to change, by the largest item in memory."""


@dataclass(frozen=True)
class Plan:
    """What a run takes: rows of its stages, and its slowest and fastest rate in operations per second and process."""

    sizes: Sizes
    device: str
    rows: list[Row]
    memory: float
    rates: tuple[float, float]

    def seconds(self, *rows: Row) -> tuple[float, float]:
        """The shortest and the longest time of some stages, or of all; equal if the rate was measured."""
        longest, shortest = (sum(self._time(row, rate) for row in rows or self.rows) for rate in self.rates)
        return shortest, longest

    def _time(self, row: Row, rate: float) -> float:
        minutes = self.sizes.recipe.search.minutes
        most = 60 * minutes if row.stage == "search" and minutes is not None else math.inf
        return min(row.operations / self.sizes.processes / rate, most)

    def passes(self, *rows: Row) -> float:
        """Work of some stages, or of all, in tokens that the dense model reads."""
        return sum(row.operations for row in rows or self.rows) / self.sizes.operations(1, heads=1)

    @property
    def peak(self) -> Row:
        """The stage that needs most memory, which is that of the run."""
        return max(self.rows, key=lambda row: row.bytes)

    @property
    def problem(self) -> str | None:
        """What doesn't fit, and a setting to lower."""
        peak, item = self.peak, max(self.peak.memory, key=lambda item: self.peak.memory[item])
        if peak.bytes <= self.memory:
            return None
        return (
            f"{peak.stage} needs {size(peak.bytes)} of memory for each process, {size(peak.memory[item])} of it for "
            f"{item}, but {self.device} has {size(self.memory)}: {REMEDIES.get(item, 'use a device with more memory')}"
        )


def plan_here(sizes: Sizes, device: torch.device, rate: float | None = None) -> Plan:
    """Plan a run on a device of this machine; its rate is measured if it isn't known."""
    on_cpu = device.type == "cpu"
    held = float(sizes.recipe.compute.memory or all_bytes(device)) / (sizes.processes if on_cpu else 1)
    rate = measure_rate(sizes, device) if rate is None else rate
    return Plan(sizes, str(device), rows_of(sizes, on_cpu=on_cpu, memory=held), held, (rate, rate))


def plan_card(sizes: Sizes, card: str) -> Plan:
    """Plan a run on a card of `DEVICES`, whose rate is a range."""
    peak, gigabytes = DEVICES[card]
    held = float(sizes.recipe.compute.memory or gigabytes << 30)
    slowest, fastest = (share * 1e12 * peak for share in OF_PEAK)
    return Plan(sizes, card, rows_of(sizes, on_cpu=False, memory=held), held, (slowest, fastest))


def check_memory(sizes: Sizes, device: torch.device) -> None:
    """Raise DeviceMemoryError if the largest stage of a run needs more memory than a device has.

    From then on, caches leave the memory that a stage needs.
    """
    plan = plan_here(sizes, device, math.inf)
    plan = replace(plan, rows=[row for row in plan.rows if row.stage != "model"])  # a GGUF file is converted by now
    if plan.problem:
        raise DeviceMemoryError(plan.problem)
    memory_of(device).needs = {row.stage: row.bytes for row in plan.rows}


class _ConstantWeights(Checkpoint):
    """A checkpoint whose weights are all alike, from its configuration alone."""

    @cached_property
    def tensors(self) -> Any:
        return {name: tensor.shape for name, tensor in self.outline.state_dict().items()}

    def read(self, prefix: str = "", *, dtype: torch.dtype | None = None, mapped: bool = True) -> dict[str, Tensor]:
        found = {name: torch.full(shape, 0.01) for name, shape in self.tensors.items() if name.startswith(prefix)}
        kind = dtype or torch.float32
        return {name.removeprefix(prefix): self.cast(name, tensor, kind) for name, tensor in found.items()}

    def rows(self, name: str, index: Tensor, *, dtype: torch.dtype) -> Tensor:
        return torch.rand(len(index), *self.tensors[name][1:]).to(dtype)


@torch.no_grad()
def measure_rate(sizes: Sizes, device: torch.device) -> float:
    """Operations per second of passes through a block, in batches that grow up to the run's own within seconds.

    On a CPU it is the rate of an idle machine: a batch that had to wait counts with its processor time.
    """
    checkpoint, length = sizes.checkpoint, sizes.recipe.text.sequence_length
    weights = _ConstantWeights(**{each.name: getattr(checkpoint, each.name) for each in fields(checkpoint)})
    text = torch.randint(int(checkpoint.config.vocab_size), (max(sizes.pass_tokens // length, 1), length))
    decoder = StreamedDecoder(weights, text, dtype=sizes.dtype, device=device)
    block = max(range(sizes.depth), key=sizes.params_of)
    source = checkpoint.family.attention.sources(checkpoint.config).get(block)  # whose keys and values it reuses
    through = sum(sizes.through_module(shape) for shape in sizes.shapes if shape.block == block)
    for count in [1, *(min(1 << power, len(text)) for power in range(len(text).bit_length() + 1))]:  # once to warm up
        tokens = text[:count]
        hidden, arguments = decoder.embed(tokens), decoder.block_arguments(tokens)
        for each in (block,) if source is None else (source, block):
            decoder.load(each)
            await_device(device)
            wall, processor = time.perf_counter(), time.process_time()
            decoder.run_block(each, hidden, arguments[each])
        await_device(device)
        seconds, used = time.perf_counter() - wall, time.process_time() - processor
        seconds = min(seconds, used / torch.get_num_threads()) if device.type == "cpu" else seconds
        if seconds > ENOUGH:
            break
    return tokens.numel() * through / max(seconds, 1e-9)
