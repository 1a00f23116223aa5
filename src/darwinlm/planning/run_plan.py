"""The plan of a run: what each step says that it costs, with times from a measured rate, and a check of its memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.planning.rate import measure_rate
from darwinlm.runtime import parallel, tables
from darwinlm.runtime.amounts import count, duration, size
from darwinlm.runtime.errors import DeviceMemoryError
from darwinlm.runtime.limits import visible
from darwinlm.runtime.memory import all_bytes, memory_of
from darwinlm.runtime.run import Run
from darwinlm.runtime.sections import AnyRecipe, Sections
from darwinlm.runtime.step import AnyStep, Cost
from darwinlm.runtime.tables import Table
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.search.step import Search
from darwinlm.steps.source.whole_model import CONVERSION, conversion_cost
from darwinlm.steps.text.shares import shares_of
from darwinlm.steps.workload import LIBRARIES, Workload

Steps = Sequence[type[AnyStep]]

DEVICES = {
    "h100": (989, 80), "h200": (989, 141), "a100": (312, 80), "a100-40gb": (312, 40), "l40s": (362, 48),
    "rtx4090": (165, 24), "rtx3090": (71, 24), "rtx4080": (97.5, 16), "rtx4060": (30, 8),
}  # fmt: skip
"""Dense bfloat16 TFLOP/s as NVIDIA states them, and GiB of memory."""
OF_PEAK = (0.02, 0.5)
"""Shares of a card's peak between which a run is likely to work."""
REMEDIES = {
    "activations": "lower compute.batch_tokens",
    "a tensor in float32": "give the model's original folder or hub id",
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
class Row:
    """A step of the plan, and what it costs."""

    step: str
    cost: Cost


@dataclass(frozen=True)
class Plan:
    """Cost of a run: rows of its steps, and its slowest and fastest rate in operations per second and process.

    Attributes:
        memory: Bytes of the device for one process.
        free: Whether `memory` is what is free now, rather than all of it.
        limit: Seconds after which the run ends; None for no limit.
        preset: Preset that the limit chose; None if it hasn't.
    """

    sizes: RunSizes
    device: str
    rows: list[Row]
    memory: float
    rates: tuple[float, float]
    free: bool = False
    limit: float | None = None
    preset: str | None = None

    def seconds(self, *rows: Row) -> tuple[float, float]:
        """The shortest and the longest time of some steps, or of all; equal if the rate was measured."""
        longest, shortest = (sum(self._time(row, rate) for row in rows or self.rows) for rate in self.rates)
        return shortest, longest

    def _time(self, row: Row, rate: float) -> float:
        seconds = row.cost.operations / self.sizes.processes / rate
        minutes = self.sizes.recipe.section(SearchSettings).minutes
        if row.step == Search.name and minutes is not None:
            return min(seconds, 60 * minutes)
        return seconds

    def times(self, *rows: Row) -> str:
        """The time of some steps, or of all, in words; a range if the rate is one."""
        return " to ".join(dict.fromkeys(map(duration, self.seconds(*rows))))

    @property
    def table(self) -> Table:
        """A row for each stage and one for all: passes of the model, time and memory."""
        cells = [(row.step, f"{self.passes(row):,.0f}", self.times(row), size(row.cost.bytes)) for row in self.rows]
        total = ("all", f"{self.passes():,.0f}", self.times(), size(self.peak.cost.bytes))
        return Table(("stage", "passes", "time", "memory"), [*cells, total])

    @property
    def lines(self) -> tuple[str, str]:
        """The model before and after, and the device."""
        sizes = self.sizes
        smaller = count(sizes.saved_params)
        return (
            f"{sizes.checkpoint.source}: {count(sizes.params)} parameters → at most {smaller}; a pass of one token "
            f"takes {sizes.operations(1, heads=1):.2e} operations",
            f"{sizes.processes} x {self.device}: {size(self.memory)} of memory for each process",
        )

    def _repr_html_(self) -> str:
        """What notebooks show."""
        said = [*self.lines, f"doesn't fit: {self.problem}"] if self.problem else self.lines
        return "".join(f"<div>{escape(visible(line))}</div>" for line in said) + tables.html(self.table)

    def passes(self, *rows: Row) -> float:
        """Work of some steps, or of all, in tokens that the dense model reads."""
        return sum(row.cost.operations for row in rows or self.rows) / self.sizes.operations(1, heads=1)

    @property
    def most_memory(self) -> float:
        """Bytes that the run takes at most, caches included."""
        return max(row.cost.bytes + row.cost.caches for row in self.rows)

    @property
    def peak(self) -> Row:
        """The step that needs most memory, which is that of the run."""
        return max(self.rows, key=lambda row: row.cost.bytes)

    @property
    def problem(self) -> str | None:
        """What doesn't fit, and a setting to lower."""
        cost = self.peak.cost
        item = max(cost.memory, key=lambda name: cost.memory[name])
        if cost.bytes <= self.memory:
            return None
        return (
            f"{self.peak.step} needs {size(cost.bytes)} of memory for each process, {size(cost.memory[item])} of it "
            f"for {item}, but {self.device} has {size(self.memory)}{' free' if self.free else ''}: "
            f"{REMEDIES.get(item, 'use a device with more memory')}"
        )


def rows_of(steps: Steps, sizes: RunSizes, *, on_cpu: bool, memory: float) -> list[Row]:
    """Rows of the steps of a run, in order, on a device with `memory` bytes for one process.

    On a CPU, the libraries are part of each row's memory.
    """
    load = Workload(sizes, shares_of(sizes.recipe, steps), on_cpu=on_cpu, memory=memory)
    costs = [(CONVERSION, conversion_cost(load)), *((step.name, step.cost(load)) for step in steps)]
    base = {"libraries": LIBRARIES} if on_cpu else {}
    return [Row(name, replace(cost, memory=base | dict(cost.memory))) for name, cost in costs if cost is not None]


def plan_here(steps: Steps, sizes: RunSizes, device: torch.device, rate: float | None = None) -> Plan:
    """Plan a run on a device of this machine; its `rate`, in operations per second, is measured if it isn't given."""
    on_cpu = device.type == "cpu"
    memory = float(sizes.recipe.compute.memory or all_bytes(device)) / (sizes.processes if on_cpu else 1)
    rate = measure_rate(sizes, device) if rate is None else rate
    return Plan(sizes, str(device), rows_of(steps, sizes, on_cpu=on_cpu, memory=memory), memory, (rate, rate))


def plan_card(steps: Steps, sizes: RunSizes, card: str) -> Plan:
    """Plan a run on a card of `DEVICES`, whose rate is a range."""
    peak, gigabytes = DEVICES[card]
    memory = float(sizes.recipe.compute.memory or gigabytes << 30)
    slowest, fastest = (share * 1e12 * peak for share in OF_PEAK)
    return Plan(sizes, card, rows_of(steps, sizes, on_cpu=False, memory=memory), memory, (slowest, fastest))


def check_memory(steps: Steps, recipe: Sections, checkpoint: Checkpoint, device: torch.device) -> None:
    """Raise DeviceMemoryError if the largest step of a run needs more memory than a device has.

    From then on, caches leave the memory that a step needs.
    """
    plan = plan_here(steps, RunSizes(checkpoint, recipe, parallel.size()), device, math.inf)
    plan = replace(plan, rows=[row for row in plan.rows if row.step != CONVERSION])  # a GGUF file is converted by now
    if plan.problem:
        raise DeviceMemoryError(plan.problem)
    memory_of(device).needs = {row.step: row.cost.bytes for row in plan.rows}


def announce(run: Run[AnyRecipe], steps: Steps, original: Checkpoint) -> None:
    """Say the planned time and memory of a new run."""
    if not parallel.is_main():
        return
    limit = run.context.limit
    planned = plan_here(steps, RunSizes(original, run.recipe, parallel.size()), run.context.device)
    time = f"{duration(planned.seconds()[0])} if nothing else runs"
    if limit is not None:
        amounts = f"with the amounts of the preset {limit.preset}"
        time = f"{duration(limit.seconds)} at most if nothing else runs, {amounts}"
    run.context.reporter.say(
        f"planned: {time}, up to {size(planned.most_memory)} of memory, {size(planned.peak.cost.bytes)} of it without "
        "caches"
    )
