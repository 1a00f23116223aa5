"""Devices as data, and this machine's CPU as a short measurement."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml

from darwinlm.runtime.compute import has_matrix_tiles
from darwinlm.runtime.errors import RecipeError, first_line
from darwinlm.runtime.limits import YAML_BYTES, parse_yaml, read_text, suggestion


@dataclass(frozen=True)
class Device:
    """Throughput and memory of a device.

    Attributes:
        memory: Memory in bytes.
        rates: Operations per second of dense matrix products, by element type.
        bandwidth: Memory bandwidth in bytes per second.
        source: Source of the figures.
        efficiency: Share of `rates` that passes through a model reach. Our choice for GPUs, similar to the model FLOPs
            utilisation of well-tuned training (PaLM, arXiv 2204.02311, section 4.1, reached 0.46).
        product_efficiency: Share of `rates` that other large matrix products reach.
        block_seconds: Minimum time of a pass through one block, even with few tokens; about forty kernel launches.
        step_seconds: Minimum time of one step of a removal order: 31 kernels of a CUDA graph at 3 microseconds each,
            and recordings of graphs.
        disk: Bytes per second that the machine's disk reads or writes, as `benchmarks/gpu.py` measures them; NVMe
            drives state 3 to 7e9.
    """

    name: str
    memory: float
    rates: dict[str, float]
    bandwidth: float
    source: str
    efficiency: float = 0.4
    product_efficiency: float = 0.4
    block_seconds: float = 4e-4
    step_seconds: float = 1.1e-4
    disk: float = 2e9

    @property
    def is_cpu(self) -> bool:
        """Whether the device's memory is the machine's RAM."""
        return self.name == "cpu"

    @property
    def kind(self) -> torch.device:
        """The device in PyTorch."""
        return torch.device("cpu" if self.is_cpu else "cuda")


CPU_EFFICIENCY, TILES_EFFICIENCY = 0.57, 0.8
"""Share of a large product's speed that passes reach on a CPU without matrix tiles, and with them. Measured on
2026-11-24 (docs/notebook/speed.md)."""

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
UNITS = dict.fromkeys(DTYPES, 1e12) | dict.fromkeys(("memory", "bandwidth", "disk"), 1e9)
UNITS |= dict.fromkeys(("efficiency", "product_efficiency", "step_seconds"), 1.0)
"""Units of the figures of a device in a file."""

TRIALS, LONG_ENOUGH = 6, 0.3
"""Maximum number of trials of a measurement, and time limit for starting another one in seconds."""

BUSY = 1.5
"""Load average per core above which other programs slow a measurement. Our choice, 2026-11-27."""


def find_device(name: str) -> Device:
    """A device by name; `cpu` is measured, `cuda` is this machine's GPU, a YAML file comes from benchmarks/gpu.py.

    Raises:
        RecipeError: The device isn't known (the message lists the known ones), this machine has no such GPU, or the
            file has no device.
    """
    if name == "cpu":
        return measure_cpu()
    if name.endswith((".yaml", ".yml")):
        return _measured(Path(name).expanduser())
    table = yaml.safe_load((resources.files("darwinlm.planning") / "devices.yaml").read_text(encoding="utf-8"))
    if name == "cuda":
        return _card_at_hand(table)
    if name not in table:
        known = [*table, "cuda", "cpu"]
        hint = suggestion(name, known, f"known are {', '.join(known)}")
        raise RecipeError(f"--device: '{name}' isn't known: {hint}")
    return _from_row(name, table[name])


def _measured(path: Path) -> Device:
    """The device of a file with a row as `devices.yaml` has them, its efficiencies, `step_seconds` and `disk`."""
    try:
        ((name, row),) = parse_yaml(read_text(path, YAML_BYTES)).items()
        return _from_row(str(name), row)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RecipeError(
            f"--device {path}: it describes no device ({type(error).__name__}: {first_line(error)}): give the YAML "
            "file that benchmarks/gpu.py wrote"
        ) from error


def _from_row(name: str, row: dict[str, Any]) -> Device:
    figures = {field: row[field] * unit for field, unit in UNITS.items() if field in row}
    if not all(0 < figure < math.inf for figure in figures.values()):
        raise ValueError("figures must be above 0")
    rates = {kind: figures.pop(kind) for kind in DTYPES}
    return Device(name, rates=rates, source=str(row["source"]), **figures)


def _card_at_hand(table: dict[str, dict[str, Any]]) -> Device:
    """The entry of this machine's GPU, with its memory."""
    if not torch.cuda.is_available():
        raise RecipeError(f"--device cuda: this machine's PyTorch finds no GPU: give cpu or one of {', '.join(table)}")
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    spelled = "".join(filter(str.isalnum, card.name.lower()))
    alike = [name for name in table if name.partition("-")[0] in spelled]
    if not alike:
        raise RecipeError(f"--device cuda: '{card.name}' isn't known: give the most similar of {', '.join(table)}")
    name = min(alike, key=lambda each: abs(1e9 * table[each]["memory"] - card.total_memory))
    return replace(_from_row(name, table[name]), memory=float(card.total_memory))


@cache
def measure_cpu(clock: Callable[[], float] = time.perf_counter) -> Device:
    """Measure this machine with PyTorch's number of threads: matrix products and a copy, about two seconds.

    Args:
        clock: Clock in seconds; with one thread, process time excludes the load of other programs.
    """

    def best(action: Callable[[], object]) -> float:
        taken: list[float] = []
        while not taken or (len(taken) < TRIALS and sum(taken) < LONG_ENOUGH):
            begun = clock()
            action()
            taken.append(clock() - begun)
        return min(taken)

    rates = {kind: _rate(dtype, best) for kind, dtype in DTYPES.items()}
    source = torch.zeros(16 << 20)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / best(lambda: target.copy_(source))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Device(
        "cpu",
        memory,
        rates,
        bandwidth,
        _circumstances(),
        efficiency=TILES_EFFICIENCY if has_matrix_tiles() else CPU_EFFICIENCY,
        product_efficiency=1.0,
        step_seconds=3e-4,  # set on a run on two cores, 2026-11-24
    )


def present_load() -> str:
    """Words for the machine's load, if other programs slow it; else an empty string."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if load > BUSY * cores else ""


def _circumstances() -> str:
    """Number of threads of a measurement, and the load that made it too slow."""
    threads, load = torch.get_num_threads(), present_load()
    busy = f"; the machine is busy, {load}: times are shorter when it is idle" if load else ""
    return f"measured here, {threads} thread{'' if threads == 1 else 's'}{busy}"


def _rate(dtype: torch.dtype, best: Callable[[Callable[[], object]], float]) -> float:
    """Operations per second of a product, whose size is limited because some types are emulated."""
    for size in (128, 256, 512, 1024):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, 2 * size).to(dtype)
        seconds = best(partial(torch.matmul, a, b))
        if seconds > LONG_ENOUGH / 16:  # the next size takes eight times as long, or more
            break
    return 4 * size**3 / seconds
