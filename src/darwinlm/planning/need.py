"""Needs of a stage, and its time on a device."""

from __future__ import annotations

from dataclasses import dataclass, field

from darwinlm.planning.devices import Device

RESERVE = 0.9
"""Share of a device's memory that a run may use; the rest is the runtime's and fragmentation's."""

STEP = 3e-4
"""Overhead of one removal in seconds, for about twenty small calls."""


@dataclass(frozen=True)
class Item:
    """An item that takes memory or disk.

    Attributes:
        name: Name for tables.
        bytes: Bytes on a CPU; a GPU may need more.
        on_gpu: Additional bytes on a GPU.
        setting: Recipe field that it is proportional to; empty if there is none.
        value: Current value of that field.
        least: Smallest reasonable value of that field.
    """

    name: str
    bytes: float
    setting: str = ""
    value: int = 0
    least: int = 1
    on_gpu: float = 0

    def on(self, device: Device) -> float:
        """Bytes on a device."""
        return self.bytes + (0 if device.is_cpu else self.on_gpu)


@dataclass
class StageNeed:
    """Needs of one stage.

    Attributes:
        name: Name of the stage.
        tokens: Number of tokens that it reads; repeated ones count each time.
        passes: Operations of forward and backward passes.
        kind: Arithmetic type of the passes.
        operations: Operations of other matrix products, by arithmetic type.
        moved: Bytes moved through memory besides those of matrix products.
        steps: Number of dependent steps, each of which has a minimum duration.
        calls: Number of passes through one block, each of which has a minimum duration.
        host: Seconds on one CPU core, independent of the device.
        bound: Time limit of the stage in minutes.
        processes: Number of processes that share its work; the figures above are totals.
        device: Items in the device's memory at the peak.
        ram: Items in the machine's memory, in addition.
        disk: Bytes of its output files.
        scratch: Item that takes disk only during the stage, or None.
        note: Adaptation of the stage to the machine, as text; may be empty.
    """

    name: str
    tokens: float = 0
    passes: float = 0
    kind: str = "bfloat16"
    operations: dict[str, float] = field(default_factory=dict)
    moved: float = 0
    steps: float = 0
    calls: float = 0
    host: float = 0
    bound: float | None = None
    processes: int = 1
    device: list[Item] = field(default_factory=list)
    ram: list[Item] = field(default_factory=list)
    disk: float = 0
    scratch: Item | None = None
    note: str = ""

    @property
    def disk_bytes(self) -> float:
        """Peak disk use of the stage, without output of other stages."""
        return self.disk + (self.scratch.bytes if self.scratch else 0)

    @property
    def flops(self) -> float:
        """Operations of all types."""
        return self.passes + sum(self.operations.values())

    def unbounded_seconds(self, on: Device) -> float:
        """Time on a device without a time limit; each process has its own device."""
        passes = self.passes / (on.rates[self.kind] * on.efficiency[self.kind])
        products = sum(count / (on.rates[kind] * on.product_efficiency) for kind, count in self.operations.items())
        waits = STEP * self.steps + on.block_seconds * self.calls
        return (passes + products + self.moved / on.bandwidth + waits) / self.processes + self.host

    def seconds(self, on: Device) -> float:
        """Time on a device; each process has its own device."""
        seconds = self.unbounded_seconds(on)
        return seconds if self.bound is None else min(seconds, 60 * self.bound)

    def device_bytes(self, on: Device) -> float:
        """Peak memory of the device; on a CPU, all memory of one process."""
        items = [*self.device, *(self.ram if on.is_cpu else [])]
        return sum(item.on(on) for item in items)

    def ram_bytes(self, on: Device) -> float:
        """Peak memory of the machine for all processes together."""
        items = (*self.device, *self.ram) if on.is_cpu else self.ram
        return self.processes * sum(item.bytes for item in items)
