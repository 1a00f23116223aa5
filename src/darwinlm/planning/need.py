"""What one stage does and holds, and its time on a device."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from darwinlm.planning.devices import Device
from darwinlm.planning.model import Sizes

RESERVE = 0.9
"""Share of a device's memory that a run may use; the rest is the runtime's and fragmentation's. Our choice."""


@dataclass
class StageNeed:
    """Needs of one stage. Operations, tokens and bytes moved are totals of all processes; memory is that of one.

    Processes share the work and the machine's disk. Work that each of them repeats counts once for each.

    Attributes:
        machine: Bytes of the machine's memory; None means enough.
        tokens: Number of tokens that the stage reads; repeated ones count each time.
        passes: Operations of forward and backward passes.
        calls: Number of passes through one block, each of which has a minimum duration.
        products: Operations of other matrix products, by arithmetic type.
        steps: Number of steps of removal orders, each of which has a minimum duration.
        moved: Bytes moved through memory besides those of matrix products.
        host: Seconds on one CPU core, independent of the device.
        bound: Time limit of the stage in seconds.
        held: Bytes of what is in the device's memory at the peak, by name.
        ram: Bytes in the machine's memory, in addition.
        read: Bytes of the files that it reads; each counts once, since main memory keeps what was read.
        disk: Bytes of its output files.
        replaced: Bytes of files that it writes and deletes later.
        scratch: Bytes on the disk only during the stage.
        note: Adaptation of the stage to the machine, as text; may be empty.
    """

    name: str
    sizes: Sizes
    device: Device
    machine: float | None
    tokens: float = 0
    passes: float = 0
    calls: float = 0
    products: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: float = 0
    moved: float = 0
    host: float = 0
    bound: float = float("inf")
    held: dict[str, float] = field(default_factory=dict)
    ram: dict[str, float] = field(default_factory=dict)
    read: float = 0
    disk: float = 0
    replaced: float = 0
    scratch: float = 0
    note: str = ""

    def run(
        self,
        tokens: float,
        kept: float = 1.0,
        *,
        times: float = 1.0,
        blocks: float = 1.0,
        heads: float = 0.0,
        logit_bytes: float = 0.0,
        batch: int | None = None,
    ) -> None:
        """Add passes of `times` runs over some tokens.

        Args:
            tokens: Tokens of one run.
            kept: Share of the blocks' parameters that the model keeps.
            times: Number of runs.
            blocks: Passes through the blocks in units of a forward pass. A backward pass is one for the gradients of
                inputs, and another one for those of weights.
            heads: Passes through the head, in the same unit.
            logit_bytes: Bytes moved for each logit.
            batch: Tokens in one pass; None is the recipe's batch.
        """
        sizes = self.sizes
        self.passes += times * tokens * (blocks * kept * sizes.forward + heads * sizes.head)
        self.calls += times * blocks * -(-tokens // (batch or sizes.pass_tokens)) * sizes.depth
        self.moved += times * tokens * sizes.vocabulary * logit_bytes

    @property
    def processes(self) -> int:
        """Number of processes that share the work."""
        return self.sizes.processes

    @property
    def disk_bytes(self) -> float:
        """Peak disk use of the stage, without output of other stages."""
        return self.disk + self.scratch

    @property
    def disk_seconds(self) -> float:
        """Time of the disk, which processes share."""
        return (self.read + self.disk + self.replaced) / self.device.disk

    @property
    def flops(self) -> float:
        """Operations of all types."""
        return self.passes + sum(self.products.values())

    @property
    def unbounded_seconds(self) -> float:
        """Time without a limit."""
        on = self.device
        passes = self.passes / (on.rates[self.sizes.kind] * on.efficiency[self.sizes.kind])
        products = sum(count / (on.rates[kind] * on.product_efficiency) for kind, count in self.products.items())
        waits = on.step_seconds * self.steps + on.block_seconds * self.calls
        return (passes + products + self.moved / on.bandwidth + waits) / self.processes + self.host + self.disk_seconds

    @property
    def seconds(self) -> float:
        """Time of the stage."""
        return min(self.unbounded_seconds, self.bound)

    @property
    def items(self) -> dict[str, float]:
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
