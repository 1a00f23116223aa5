"""The speed of a device of this machine, measured in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint, Outline
from darwinlm.model.families.shard_reading import Empty, in_memory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.planning.speeds import EXPECTED, READING, WRITING, CardSpeed, PassSpeed, Speed, with_processes
from darwinlm.runtime.compute import await_device, now
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.workload import Workload

ENOUGH = 2.0
"""Seconds after which no larger batch is timed."""
TIMED, LARGEST = 0.02, 8192
"""Seconds of work whose rate counts, and the largest side of its matrices."""
SOLVED = 0.5
"""Share of the rate of products that factorisations and solves reach; assumed."""


class _ConstantWeights(Outline):
    """A checkpoint whose weights are all equal, from its configuration alone."""

    def read(
        self, prefix: str = "", *, dtype: torch.dtype | None = None, mapped: bool = True, empty: Empty = in_memory
    ) -> dict[str, Tensor]:
        del mapped, empty  # nothing is read
        tensors = {name: torch.full(shape, 0.01) for name, shape in self.shapes().items() if name.startswith(prefix)}
        kind = dtype or torch.float32
        return {name.removeprefix(prefix): self.cast(name, tensor, kind) for name, tensor in tensors.items()}

    def rows(self, name: str, index: Tensor, *, dtype: torch.dtype) -> Tensor:
        return torch.rand(len(index), *self.shapes()[name][1:]).to(dtype)


def measure_speed(sizes: RunSizes, device: torch.device) -> Speed:
    """The speed of a device: on an NVIDIA GPU the rate of each of its units, elsewhere one rate of passes."""
    passes = measure_rate(sizes, device)
    if device.type != "cuda":
        return passes
    alone = RunSizes(sizes.checkpoint, sizes.recipe, smaller=sizes.smaller)
    pass_of_all = Workload(alone, {}, on_cpu=False, memory=0.0).passes(alone.pass_tokens)
    units = measure_units(device, sizes.dtype)
    # What products and copies don't show: other kernels, and shapes that suit the card less.
    alone_in = units.units(pass_of_all)
    factor = (alone_in["computing"] + alone_in["memory"]) / (pass_of_all.operations / passes.operations)
    scaled = ("products", "memory") if sizes.size == 2 else ("float32", "memory")
    return with_processes(replace(units, **{name: factor * getattr(units, name) for name in scaled}), sizes.processes)


@torch.no_grad()
def measure_units(device: torch.device, dtype: torch.dtype) -> CardSpeed:
    """Rates of a GPU. Those of its machine that take long to measure are the expected ones."""

    def product(kind: torch.dtype, n: int) -> tuple[float, Callable[[], object]]:
        a, b = (torch.ones(n, n, dtype=kind, device=device) for _ in range(2))
        return 2.0 * n**3, lambda: a @ b

    def moved(n: int) -> tuple[float, Callable[[], object]]:
        source = torch.ones(n * n, device=device)
        target = torch.empty_like(source)
        return 8.0 * n * n, lambda: target.copy_(source)

    def copied(n: int) -> tuple[float, Callable[[], object]]:
        host, target = torch.ones(n * n).pin_memory(), torch.empty(n * n, device=device)
        return 4.0 * n * n, lambda: target.copy_(host, non_blocking=True)

    def launched(n: int) -> tuple[float, Callable[[], object]]:
        one = torch.ones(1, device=device)
        return float(n), lambda: [one.add_(1) for _ in range(n)]

    kinds = (dtype, torch.float32, torch.float64)
    products, float32, float64 = (_rate(partial(product, kind), device) for kind in kinds)
    memory, copies, launches = (_rate(of, device) for of in (moved, copied, launched))
    reading, writing = 1e9 * READING * EXPECTED.reading, 1e9 * WRITING * EXPECTED.writing
    # Links between cards can't be measured alone; they are at least as fast as the copies.
    return CardSpeed(products, float32, SOLVED * float64, memory, copies, reading, writing, copies, 1 / launches)


def _rate(of_size: Callable[[int], tuple[float, Callable[[], object]]], device: torch.device) -> float:
    """The rate of some work that grows until it takes long enough to be timed: its amount per second."""
    n, seconds, amount = 128, 0.0, 0.0
    while seconds < TIMED and n <= LARGEST:
        amount, action = of_size(n)
        action()
        begun = now(device)
        action()
        seconds = now(device) - begun
        n *= 2
    return amount / max(seconds, 1e-9)


@torch.no_grad()
def measure_rate(sizes: RunSizes, device: torch.device) -> PassSpeed:
    """The rate of passes through a block, in batches that grow up to the run's own within seconds.

    On a CPU it is that of an idle machine: a batch that had to wait counts with its processor time.
    """
    checkpoint, length = sizes.checkpoint, sizes.recipe.section(TextSettings).sequence_length
    weights = _ConstantWeights(**{field.name: getattr(checkpoint, field.name) for field in fields(Checkpoint)})
    text = torch.randint(int(checkpoint.config.vocab_size), (max(sizes.pass_tokens // length, 1), length))
    decoder = StreamedDecoder(weights, text, dtype=sizes.dtype, device=device)
    block = max(range(sizes.depth), key=sizes.params_of)
    source = checkpoint.family.attention.sources(checkpoint.config).get(block)  # whose keys and values it reuses
    through = sum(sizes.through_module(shape) for shape in sizes.shapes if shape.block == block)
    for count in [1, *(min(1 << power, len(text)) for power in range(len(text).bit_length() + 1))]:  # once to warm up
        tokens = text[:count]
        hidden, arguments = decoder.embed(tokens), decoder.block_arguments(tokens)
        for number in (block,) if source is None else (source, block):
            decoder.load(number)
            await_device(device)
            wall, processor = time.perf_counter(), time.process_time()
            decoder.run_block(number, hidden, arguments[number])
        await_device(device)
        seconds, used = time.perf_counter() - wall, time.process_time() - processor
        idle = min(seconds, used / torch.get_num_threads()) if device.type == "cpu" else seconds
        if seconds > ENOUGH:
            break
    operations = tokens.numel() * through
    rate = operations / max(idle, 1e-9)
    return PassSpeed(rate, min(operations / max(used, 1e-9), rate)) if device.type == "cpu" else PassSpeed(rate)
