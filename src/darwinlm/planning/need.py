"""What one stage does and holds, and its time on a device."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from darwinlm.planning.devices import Device
from darwinlm.planning.model import Sizes

RESERVE = 0.9
"""Share of a device's memory that a run may use; the rest is the runtime's and fragmentation's. Our choice."""

STEP = 3e-4
"""Seconds that one removal takes at least, for about twenty small calls. Our choice, 2026-11-24."""


@dataclass(frozen=True)
class Item:
    """Bytes in memory or on disk, and the recipe field that they are proportional to, its value and smallest value."""

    name: str
    bytes: float
    setting: str = ""
    value: int = 0
    least: int = 1


@dataclass
class StageNeed:
    """Needs of one stage. Operations, tokens and bytes moved are totals of all processes; memory is that of one.

    Attributes:
        name: Name of the stage.
        sizes: Sizes of model and recipe.
        device: Device of every process.
        kind: Arithmetic type of the passes.
        processes: Number of processes that share the work.
        machine: Bytes of the machine's memory; None means enough.
        tokens: Number of tokens that the stage reads; repeated ones count each time.
        passes: Operations of forward and backward passes.
        calls: Number of passes through one block, each of which has a minimum duration.
        products: Operations of other matrix products, by arithmetic type.
        steps: Number of dependent steps, each of which has a minimum duration.
        moved: Bytes moved through memory besides those of matrix products.
        host: Seconds on one CPU core, independent of the device.
        bound: Time limit of the stage in seconds.
        held: Items in the device's memory at the peak.
        ram: Items in the machine's memory, in addition.
        disk: Bytes of its output files.
        scratch: Item that takes disk only during the stage, or None.
        note: Adaptation of the stage to the machine, as text; may be empty.
    """

    name: str
    sizes: Sizes
    device: Device
    kind: str
    processes: int = 1
    machine: float | None = None
    tokens: float = 0
    passes: float = 0
    calls: float = 0
    products: Counter[str] = field(default_factory=Counter)
    steps: float = 0
    moved: float = 0
    host: float = 0
    bound: float = float("inf")
    held: list[Item] = field(default_factory=list)
    ram: list[Item] = field(default_factory=list)
    disk: float = 0
    scratch: Item | None = None
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
        """Add passes.

        Args:
            tokens: Tokens of one run.
            kept: Share of the blocks' parameters that the model keeps.
            times: Number of runs.
            blocks: Passes through the blocks in units of a forward pass; a backward pass is one for the inputs'
                gradients, and another one for those of weights.
            heads: The same for the head.
            logit_bytes: Bytes moved for each logit.
            batch: Tokens in one pass; None is the recipe's batch.
        """
        sizes = self.sizes
        self.passes += times * tokens * (blocks * kept * sizes.forward + heads * sizes.head)
        self.calls += times * blocks * -(-tokens // (batch or sizes.pass_tokens)) * sizes.depth
        self.moved += times * tokens * sizes.vocabulary * logit_bytes

    @property
    def disk_bytes(self) -> float:
        """Peak disk use of the stage, without output of other stages."""
        return self.disk + (self.scratch.bytes if self.scratch else 0)

    @property
    def flops(self) -> float:
        """Operations of all types."""
        return self.passes + sum(self.products.values())

    @property
    def unbounded_seconds(self) -> float:
        """Time without a limit."""
        on = self.device
        passes = self.passes / (on.rates[self.kind] * on.efficiency[self.kind])
        products = sum(count / (on.rates[kind] * on.product_efficiency) for kind, count in self.products.items())
        waits = STEP * self.steps + on.block_seconds * self.calls
        return (passes + products + self.moved / on.bandwidth + waits) / self.processes + self.host

    @property
    def seconds(self) -> float:
        """Time of the stage."""
        return min(self.unbounded_seconds, self.bound)

    @property
    def items(self) -> list[Item]:
        """Items in the device's memory, which is the machine's on a CPU."""
        return [*self.held, *self.ram] if self.device.is_cpu else self.held

    @property
    def device_bytes(self) -> float:
        """Peak memory of the device; on a CPU, all memory of one process."""
        return sum(item.bytes for item in self.items)

    @property
    def ram_bytes(self) -> float:
        """Peak memory of the machine for all processes together."""
        return self.processes * sum(item.bytes for item in (self.items if self.device.is_cpu else self.ram))
