"""How fast devices are: the rates of known cards, and the time that a step takes at some rates.

A GPU works on one kernel after another: it computes, or moves bytes in its memory. Meanwhile, the next block is read
from the disk and copied, sums are sent to other processes, and the host launches kernels. Whatever takes longest
decides the time of a part of a step.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Protocol

from darwinlm.runtime.step import Cost, Work


class Speed(Protocol):
    """Tells the time of steps."""

    def seconds(self, cost: Cost, processes: int) -> float:
        """Seconds that a step takes in so many processes."""


@dataclass(frozen=True)
class PassSpeed:
    """Rates of a CPU, or of another device whose units aren't known, in operations of passes per second and process.

    Attributes:
        operations: The rate of all cores together.
        core: The rate of one core; None if it is the same.
    """

    operations: float
    core: float | None = None

    def seconds(self, cost: Cost, processes: int) -> float:
        """See `Speed`."""
        together = (cost.operations - cost.alone) / self.operations
        return (together + cost.alone / (self.core or self.operations)) / processes + cost.python


@dataclass(frozen=True)
class CardSpeed:
    """Rates of a GPU and its machine.

    Attributes:
        products: Operations per second in 16 bits.
        float32: The same in float32, without TF32.
        float64: The same in float64.
        memory: Bytes per second of the card's memory.
        copies: Bytes per second between main memory and the card, in one direction.
        reading: Bytes per second of the disk.
        writing: Bytes per second that are written and hashed.
        link: Bytes per second to other cards.
        launch: Seconds in which the host launches a kernel.
    """

    products: float
    float32: float
    float64: float
    memory: float
    copies: float
    reading: float
    writing: float
    link: float
    launch: float

    def units(self, work: Work) -> dict[str, float]:
        """Seconds of what works side by side, by its name."""
        return {
            "computing": work.products / self.products + work.float32 / self.float32 + work.float64 / self.float64,
            "memory": work.moved / self.memory,
            "copies": work.copied / self.copies,
            "disk": work.read / self.reading + work.written / self.writing,
            "links": work.sent / self.link,
            "launches": work.launches * self.launch,
        }

    def of_part(self, work: Work) -> float:
        """Seconds of a part of a step."""
        units = self.units(work)
        return max(units["computing"] + units["memory"], *units.values())

    def seconds(self, cost: Cost, processes: int) -> float:
        """See `Speed`. Work that wasn't counted takes the time of products."""
        parts = cost.parts.values() or (Work(products=cost.operations / processes, written=cost.disk),)
        return sum(map(self.of_part, parts)) + cost.python

    def times(self, shares: CardSpeed) -> CardSpeed:
        """These rates multiplied by `shares`."""
        return CardSpeed(**{one.name: getattr(self, one.name) * getattr(shares, one.name) for one in fields(CardSpeed)})


@dataclass(frozen=True)
class Card:
    """A GPU as its maker describes it.

    Attributes:
        products: Dense bfloat16 TFLOP/s, summed in float32.
        float32: TFLOP/s in float32 without TF32.
        float64: TFLOP/s in float64, in tensor cores if it has them.
        memory: GB/s of its memory.
        copies: GB/s of its PCIe slot in one direction.
        link: GB/s of NVLink in one direction, or of PCIe.
        gigabytes: GiB of its memory.
    """

    products: float
    float32: float
    float64: float
    memory: float
    copies: float
    link: float
    gigabytes: float


CARDS = {
    "h100": Card(989, 67, 67, 3350, 64, 450, 80),
    "h200": Card(989, 67, 67, 4800, 64, 450, 141),
    "a100": Card(312, 19.5, 19.5, 2039, 32, 300, 80),
    "a100-40gb": Card(312, 19.5, 19.5, 1555, 32, 300, 40),
    "l40s": Card(362, 91.6, 1.43, 864, 32, 32, 48),
    "rtx4090": Card(165, 82.6, 1.29, 1008, 32, 32, 24),
    "rtx3090": Card(71, 35.6, 0.56, 936, 32, 32, 24),
    "rtx4080": Card(97.5, 48.7, 0.76, 717, 32, 32, 16),
    "rtx4060": Card(30, 15.1, 0.24, 272, 16, 16, 8),
}
"""Cards by name, from NVIDIA's data sheets."""
ON_A_NODE, NETWORK = 8, 50.0
"""Most cards of one machine, and GB/s of the network for each card if there are more: 400 Gbit/s."""
READING, WRITING = 7.0, 3.0
"""GB/s of a fast NVMe disk. What is written is also hashed, by several threads."""
LAUNCH = 4e-6
"""Seconds of a launch from PyTorch's C++, without its Python code."""
EXPECTED = CardSpeed(
    products=0.5, float32=0.6, float64=0.4, memory=0.6, copies=0.6, reading=0.4, writing=0.3, link=0.5, launch=2.5
)
"""Shares of the stated rates that are expected of kernels launched one by one from Python, and how much longer a launch
takes. Assumed, on the safe side: no run on a GPU has been measured yet."""


def stated_speed(card: Card, processes: int = 1) -> CardSpeed:
    """The rates that a card and its machine have at best."""
    link = card.link if processes <= ON_A_NODE else min(card.link, NETWORK)
    return CardSpeed(
        products=1e12 * card.products,
        float32=1e12 * card.float32,
        float64=1e12 * card.float64,
        memory=1e9 * card.memory,
        copies=1e9 * card.copies,
        reading=1e9 * READING,
        writing=1e9 * WRITING,
        link=1e9 * link,
        launch=LAUNCH,
    )


def expected_speed(card: Card, processes: int = 1) -> CardSpeed:
    """The rates that are expected of a card."""
    return stated_speed(card, processes).times(EXPECTED)


def with_processes(speed: CardSpeed, processes: int) -> CardSpeed:
    """Rates of a card that was measured alone, beside others: the network limits those of several machines."""
    return speed if processes <= ON_A_NODE else replace(speed, link=min(speed.link, 1e9 * NETWORK * EXPECTED.link))
