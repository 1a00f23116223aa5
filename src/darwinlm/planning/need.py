"""What one stage does and holds, and its time on a device."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from darwinlm.planning.devices import Device
from darwinlm.planning.model import Sizes

RESERVE = 0.9
"""Share of a device's memory that a run may use; the rest is the runtime's and fragmentation's. Our choice."""

LIBRARIES = 0.45e9
"""Memory of Python, PyTorch and transformers without a model. Measured on 2026-11-24; 0.40 GB of it are there before
the first stage (docs/notebook/database.md)."""

Items = dict[str, float]
"""Bytes by name."""


def largest(*alternatives: Items) -> Items:
    """The items that need the most memory together, of those that are never in memory at once."""
    return max(alternatives, key=lambda items: sum(items.values()))


@dataclass
class StageNeed:
    """Needs of one stage. Tokens, operations and `times` are totals of all processes; memory is that of one.

    Processes share the work and the machine's disk. Work that each of them repeats counts once for each.

    Attributes:
        tokens: Number of tokens that the stage reads; repeated ones count each time.
        flops: Number of operations.
        times: Seconds by cause, without the disk's.
        bound: Time limit of the stage in seconds.
        held: Bytes of what is in the device's memory at the peak, by name.
        ram: Bytes in the machine's memory, in addition.
        read: Bytes of the files that it reads; each counts once, since main memory keeps what was read.
        disk: Bytes of its output files.
        scratch: Bytes on the disk only during the stage.
        note: Adaptation of the stage to the machine, as text; may be empty.
    """

    name: str
    sizes: Sizes
    device: Device
    tokens: float = 0
    flops: float = 0
    times: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    bound: float = float("inf")
    held: Items = field(default_factory=dict)
    ram: Items = field(default_factory=lambda: {"libraries": LIBRARIES})
    read: float = 0
    disk: float = 0
    scratch: float = 0
    note: str = ""

    def run(
        self, tokens: float, kept: float = 1.0, *, blocks: float = 1.0, heads: float = 0.0, batch: float | None = None
    ) -> None:
        """Add passes of tokens through a model.

        Args:
            tokens: Number of tokens.
            kept: Share of the blocks' parameters that the model keeps.
            blocks: Passes through the blocks in units of a forward pass. A backward pass is one for the gradients of
                inputs, and another one for those of weights.
            heads: Passes through the head, in the same unit.
            batch: Tokens in one pass, which reads all weights; None is the recipe's batch.
        """
        sizes, device = self.sizes, self.device
        passes = tokens / (batch or sizes.pass_tokens)
        count = tokens * (blocks * kept * sizes.forward + heads * sizes.head)
        reading = passes * (kept * sizes.blocks + sizes.outside) * sizes.size / device.bandwidth
        self.flops += count
        self.times["passes"] += max(count / (device.rates[sizes.kind] * device.efficiency), reading)
        self.times["calls"] += blocks * passes * sizes.depth * device.block_seconds

    def multiply(self, kind: str, count: float) -> None:
        """Add operations of other matrix products in an element type."""
        self.flops += count
        self.times[kind] += count / (self.device.rates[kind] * self.device.product_efficiency)

    @property
    def processes(self) -> int:
        """Number of processes that share the work."""
        return self.sizes.processes

    @property
    def disk_bytes(self) -> float:
        """Peak disk use of the stage, without output of other stages."""
        return self.disk + self.scratch

    @property
    def unbounded_seconds(self) -> float:
        """Time without a limit."""
        return sum(self.times.values()) / self.processes + (self.read + self.disk) / self.device.disk

    @property
    def seconds(self) -> float:
        """Time of the stage."""
        return min(self.unbounded_seconds, self.bound)

    @property
    def items(self) -> Items:
        """What is in the device's memory, which is the machine's on a CPU."""
        return self.held | self.ram if self.device.is_cpu else self.held

    @property
    def device_bytes(self) -> float:
        """Peak memory of the device; on a CPU, all memory of one process."""
        return sum(self.items.values())

    @property
    def ram_bytes(self) -> float:
        """Peak memory of the machine for all processes together."""
        return self.processes * sum((self.items if self.device.is_cpu else self.ram).values())

    @property
    def room(self) -> float:
        """Bytes that a process may use on its device; processes share a CPU's."""
        return self.device.memory * RESERVE / (self.processes if self.device.is_cpu else 1)
