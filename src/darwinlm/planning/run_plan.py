"""The plan of a run: what each step says that it costs, its time at the device's rates, and a check of its memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape

import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.planning.measured_speed import measure_speed
from darwinlm.planning.speeds import CARDS, PassSpeed, Speed, expected_speed, stated_speed
from darwinlm.runtime import disk, parallel, tables
from darwinlm.runtime.amounts import count, duration, size
from darwinlm.runtime.errors import DeviceMemoryError
from darwinlm.runtime.limits import visible
from darwinlm.runtime.memory import all_bytes, memory_of
from darwinlm.runtime.run import Run
from darwinlm.runtime.sections import AnyRecipe, Sections
from darwinlm.runtime.step import AnyStep, Cost
from darwinlm.runtime.tables import Table
from darwinlm.steps.database.step import Database
from darwinlm.steps.gradients.step import Gradients
from darwinlm.steps.latency.step import Latency
from darwinlm.steps.own_text.step import OwnText
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.search.step import Search
from darwinlm.steps.source.whole_model import CONVERSION, conversion_cost
from darwinlm.steps.text.shares import shares_of
from darwinlm.steps.text.step import Text
from darwinlm.steps.vocabulary.step import Vocabulary
from darwinlm.steps.workload import LIBRARIES, Workload

Steps = Sequence[type[AnyStep]]
Others = Sequence[tuple[Sections, str]]
"""Recipes of further sizes from the same database, with the last step of each."""

SHARED = frozenset(step.name for step in (OwnText, Vocabulary, Text, Latency, Gradients, Database))
"""Steps that all sizes of a sweep share."""
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
    """Cost of a run: rows of its steps, and its lowest and highest speed.

    Attributes:
        memory: Bytes of the device for one process.
        free: Whether `memory` is what is free now, rather than all of it.
        limit: Seconds after which the run ends; None for no limit.
        preset: Preset that the limit chose; None if it hasn't.
        notes: What else to know before the run.
    """

    sizes: RunSizes
    device: str
    rows: list[Row]
    memory: float
    speeds: tuple[Speed, Speed]
    free: bool = False
    limit: float | None = None
    preset: str | None = None
    notes: tuple[str, ...] = ()

    def seconds(self, *rows: Row) -> tuple[float, float]:
        """The shortest and the longest time of some steps, or of all; equal if the device was measured."""
        longest, shortest = (sum(self._time(row, speed) for row in rows or self.rows) for speed in self.speeds)
        return shortest, longest

    def _time(self, row: Row, speed: Speed) -> float:
        seconds = speed.seconds(row.cost, self.sizes.processes)
        minutes = self.sizes.recipe.section(SearchSettings).minutes
        if row.step == Search.name and minutes is not None:
            return min(seconds, 60 * minutes)
        return seconds

    def times(self, *rows: Row) -> str:
        """The time of some steps, or of all, in words; a range if the speed is one."""
        return " to ".join(dict.fromkeys(map(duration, self.seconds(*rows))))

    @property
    def table(self) -> Table:
        """A row for each stage and one for all: passes of the model, time, memory, and space on the disk."""
        cells = [
            (row.step, f"{self.passes(row):,.0f}", self.times(row), size(row.cost.bytes), size(row.cost.disk or None))
            for row in self.rows
        ]
        total = ("all", f"{self.passes():,.0f}", self.times(), size(self.peak.cost.bytes), size(self.disk))
        return Table(("stage", "passes", "time", "memory", "disk"), [*cells, total])

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
    def disk(self) -> float:
        """Bytes that the run takes in its output folder at most, temporary files included."""
        return most_disk(self.rows)

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


def most_disk(rows: Iterable[Row]) -> float:
    """Bytes on the disk at most: what steps leave there adds up, and each has its temporary files while it works."""
    left = most = 0.0
    for row in rows:
        left += row.cost.disk
        most = max(most, left + row.cost.scratch)
    return most


def of_each_size(rows: Sequence[Row]) -> list[Row]:
    """The rows that each size of a sweep has of its own: those behind what the sizes share."""
    shared = [number for number, row in enumerate(rows) if row.step in SHARED]
    return list(rows[shared[-1] + 1 :]) if shared else []


def rows_of(steps: Steps, sizes: RunSizes, *, on_cpu: bool, memory: float) -> list[Row]:
    """Rows of the steps of a run, in order, on a device with `memory` bytes for one process.

    On a CPU, the libraries are part of each row's memory.
    """
    load = Workload(sizes, shares_of(sizes.recipe, steps), on_cpu=on_cpu, memory=memory)
    costs = [(CONVERSION, conversion_cost(load)), *((step.name, step.cost(load)) for step in steps)]
    base = {"libraries": LIBRARIES} if on_cpu else {}
    return [Row(name, replace(cost, memory=base | dict(cost.memory))) for name, cost in costs if cost is not None]


def plan_here(steps: Steps, sizes: RunSizes, device: torch.device, speed: Speed | None = None) -> Plan:
    """Plan a run on a device of this machine; its speed is measured if it isn't given."""
    on_cpu = device.type == "cpu"
    memory = float(sizes.recipe.compute.memory or all_bytes(device)) / (sizes.processes if on_cpu else 1)
    speed = measure_speed(sizes, device) if speed is None else speed
    return Plan(sizes, str(device), rows_of(steps, sizes, on_cpu=on_cpu, memory=memory), memory, (speed, speed))


def plan_card(steps: Steps, sizes: RunSizes, card: str) -> Plan:
    """Plan a run on a card of `CARDS`: from what is expected of it to the rates that its maker states."""
    stated = CARDS[card]
    memory = float(sizes.recipe.compute.memory or int(stated.gigabytes) << 30)
    speeds = (expected_speed(stated, sizes.processes), stated_speed(stated, sizes.processes))
    return Plan(sizes, card, rows_of(steps, sizes, on_cpu=False, memory=memory), memory, speeds)


def check_memory(steps: Steps, recipe: Sections, checkpoint: Checkpoint, device: torch.device) -> None:
    """Raise DeviceMemoryError if the largest step of a run needs more memory than a device has.

    From then on, caches leave the memory that a step needs.
    """
    plan = plan_here(steps, RunSizes(checkpoint, recipe, parallel.size()), device, PassSpeed(math.inf))
    plan = replace(plan, rows=[row for row in plan.rows if row.step != CONVERSION])  # a GGUF file is converted by now
    if plan.problem:
        raise DeviceMemoryError(plan.problem)
    memory_of(device).needs = {row.step: row.cost.bytes for row in plan.rows}


def plans_of(
    run: Run[AnyRecipe], steps: Steps, original: Checkpoint, others: Others = (), speed: Speed | None = None
) -> list[Plan]:
    """Plans of a run, and of the other sizes that it makes from the same database: of these, their own rows alone.

    The speed of this machine is measured if it isn't given.
    """
    device, processes = run.context.device, parallel.size()
    first = plan_here(steps, RunSizes(original, run.recipe, processes), device, speed)
    plans = [first]
    for recipe, last in others:
        plan = plan_here(steps, RunSizes(original, recipe, processes), device, first.speeds[0])
        rows = of_each_size(plan.rows)
        after = next((place for place, row in enumerate(rows, 1) if row.step == last), len(rows))
        plans.append(replace(plan, rows=rows[:after]))
    return plans


def expect_disk(run: Run[AnyRecipe], steps: Steps, original: Checkpoint, others: Others = ()) -> None:
    """Note the space that a run takes on the disk, for the message of a full one."""
    plans = plans_of(run, steps, original, others, PassSpeed(math.inf))
    disk.expect(run.folder, most_disk(row for plan in plans for row in plan.rows))


def announce(run: Run[AnyRecipe], steps: Steps, original: Checkpoint, others: Others = ()) -> None:
    """Say the planned time, memory and disk space of a new run, and whether the disk has room for it."""
    if not parallel.is_main():
        return
    limit, say = run.context.limit, run.context.reporter.say
    plans = plans_of(run, steps, original, others)
    time = f"{duration(sum(plan.seconds()[0] for plan in plans if plan.rows))} if nothing else runs"
    if limit is not None:
        amounts = f"with the amounts of the preset {limit.preset}"
        time = f"{duration(limit.seconds)} at most if nothing else runs, {amounts}"
    most, least = (max(of(plan) for plan in plans if plan.rows) for of in (_most_memory, _least_memory))
    space = most_disk(row for plan in plans for row in plan.rows)
    say(
        f"planned: {time}; up to {size(most)} of memory, {size(least)} of it without caches; up to {size(space)} of "
        "disk space"
    )
    if lack := disk.lacking(run.folder):
        say(
            f"the disk of {run.folder} has {size(disk.free_bytes(run.folder))} free, about {size(lack)} too little: "
            "free some space, or choose another output folder; a run that finds the disk full ends, and can be resumed"
        )


def _most_memory(plan: Plan) -> float:
    return plan.most_memory


def _least_memory(plan: Plan) -> float:
    return plan.peak.cost.bytes
