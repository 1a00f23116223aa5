"""The device that a plan is for: this machine's, which is measured, or a known card, whose peaks give a floor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources

import torch
import yaml

from darwinlm.needs.need import Rates, Work
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.limits import suggestion
from darwinlm.runtime.memory import all_bytes

GIB = 1 << 30

BUSY = 1.5
"""Load average per core above which other programs slow a run. Our choice, 2026-11-27."""


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        memory: Memory in bytes.
        source: Where its figures come from.
        peaks: Operations per second of dense matrix products by element type; empty for a device of this machine.
        bandwidth: Bytes per second of its memory.
    """

    name: str
    kind: torch.device
    memory: float
    source: str
    peaks: Mapping[str, float] = field(default_factory=dict)
    bandwidth: float = float("inf")

    @property
    def is_here(self) -> bool:
        """Whether it can be measured."""
        return not self.peaks

    def peak_rates(self, passes: str) -> Rates:
        """Rates that it never exceeds, with passes in an element type. The disk, text and launches are left out."""
        of_type: dict[Work, str] = dict.fromkeys(("passes", "training", "heads", "moments"), passes)
        of_type |= {"removal": "float32", "solves": "float32", "factors": "float64"}
        rates = {work: self.peaks[name] for work, name in of_type.items()}
        return Rates(rates | dict.fromkeys(("decoding", "updates"), self.bandwidth), self.bandwidth)


def find_device(name: str) -> Device:
    """A device by name: `cpu` and `cuda` are this machine's.

    Raises RecipeError if the device isn't known (the message lists the known ones), or this machine has no GPU.
    """
    if name in ("cpu", "cuda"):
        return device_here(torch.device(name))
    table = yaml.safe_load((resources.files("darwinlm.planning") / "devices.yaml").read_text(encoding="utf-8"))
    if name not in table:
        known = [*table, "cuda", "cpu"]
        hint = suggestion(name, known, f"known are {', '.join(known)}")
        raise RecipeError(f"--device: '{name}' isn't known: {hint}")
    row = table[name]
    peaks = {kind: 1e12 * row[kind] for kind in ("bfloat16", "float32", "float64")}
    return Device(name, torch.device("cuda"), row["memory"] * GIB, row["source"], peaks, 1e9 * row["bandwidth"])


def device_here(kind: torch.device) -> Device:
    """A device of this machine. Raises RecipeError if there is no GPU."""
    if kind.type == "cpu":
        threads = torch.get_num_threads()
        return Device(
            "cpu", kind, float(all_bytes(kind)), f"measured here, {threads} thread{'' if threads == 1 else 's'}"
        )
    if kind.type == "mps":
        return Device("mps", kind, float(all_bytes(kind)), "measured here")
    if not torch.cuda.is_available():
        raise RecipeError("--device cuda: this machine's PyTorch finds no GPU: name the card, such as h100, or cpu")
    card = torch.cuda.get_device_properties(kind)
    return Device(card.name, kind, float(card.total_memory), "measured here")


def present_load() -> str:
    """Words for the machine's load, if other programs slow it; else an empty string."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if load > BUSY * cores else ""
