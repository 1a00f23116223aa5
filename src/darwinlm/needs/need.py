"""What one stage does and holds. Stages state it with the function `need` of their declaration.

Work is counted by kind. A rate for each kind turns the counts into time. On this machine, the rate is measured with a
piece of the real work (`planning/probe.py`). For a card that isn't here it is the card's peak, so the time is a floor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from darwinlm.needs.sizes import Sizes
from darwinlm.streaming.hidden import STREAMS

Work = Literal[
    "passes",  # operations of forward passes through blocks
    "training",  # operations of forward and backward passes through blocks
    "heads",  # operations of logits, with their KL
    "moments",  # operations of second moments, in the type of the passes
    "removal",  # operations of removal orders, float32
    "solves",  # operations of triangular solves and products, float32
    "factors",  # operations of Cholesky factors and inverses, float64
    "decoding",  # bytes of the weights that passes of one token read
    "updates",  # bytes that steps of an optimiser move
    "transfers",  # bytes between a GPU and main memory
    "disk",  # bytes of files read and written
    "hashing",  # bytes of files hashed
    "tokenising",  # tokens of text
]
"""Kinds of work, with their units."""

OPERATIONS: tuple[Work, ...] = ("passes", "training", "heads", "moments", "removal", "solves", "factors")
ONE_PROCESS: tuple[Work, ...] = ("disk", "hashing", "tokenising")
"""Kinds that several processes don't share."""

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


@dataclass(frozen=True)
class Rates:
    """Work in a second by kind; kinds without a rate take no time. `bandwidth` bounds what passes read."""

    by_kind: Mapping[Work, float]
    bandwidth: float = float("inf")


@dataclass
class Need:
    """Needs of one stage. Counts are totals of all processes; memory is that of one.

    Attributes:
        device: Device of the run.
        memory: Its memory in bytes.
        tokens: Number of tokens that the stage reads; repeated ones count each time.
        work: Amount of work by kind.
        moved: Bytes of weights that passes read, by kind of work.
        bound: Time limit of the stage in seconds.
        held: Bytes of what is in the device's memory at the peak, by name.
        ram: Bytes in the machine's memory, in addition.
        disk: Bytes of its output files.
        scratch: Bytes on the disk only during the stage.
        note: Adaptation of the stage to the machine, as text; may be empty.
    """

    name: str
    sizes: Sizes
    device: torch.device
    memory: float = float("inf")
    tokens: float = 0
    work: Counter[Work] = field(default_factory=Counter)
    moved: Counter[Work] = field(default_factory=Counter)
    bound: float = float("inf")
    held: Items = field(default_factory=dict)
    ram: Items = field(default_factory=lambda: {"libraries": LIBRARIES})
    disk: float = 0
    scratch: float = 0
    note: str = ""

    def run(
        self,
        tokens: float,
        kept: float = 1.0,
        *,
        blocks: float = 1.0,
        heads: float = 0.0,
        batch: float | None = None,
        kind: Work = "passes",
    ) -> None:
        """Add passes of tokens through a model.

        Args:
            tokens: Number of tokens.
            kept: Share of the blocks' parameters that the model keeps.
            blocks: Passes through the blocks in units of a forward pass. A backward pass is one for the gradients of
                inputs, and another one for those of weights.
            heads: Passes through the head, in the same unit.
            batch: Tokens in one pass, which reads all weights; None is the recipe's batch.
            kind: Passes, or training.
        """
        sizes = self.sizes
        passes = tokens / (batch or sizes.pass_tokens)
        parts: tuple[tuple[Work, float, float], ...] = (
            (kind, blocks * kept * sizes.forward, blocks * kept * sizes.blocks),
            ("heads", heads * sizes.head, heads * sizes.outside),
        )
        for part, operations, weights in parts:
            self.work[part] += int(tokens * operations)
            self.moved[part] += int(passes * weights * sizes.size)

    def add(self, kind: Work, amount: float) -> None:
        """Add other work."""
        self.work[kind] += int(amount)

    def files(self, read: float, written: float = 0) -> None:
        """Add files that the stage reads and leaves; each counts once, since main memory keeps what was read."""
        self.disk = written
        self.add("disk", read + written)

    def a_pass(self, copies: float = 0, *, backward: bool = False) -> Items:
        """Memory of a pass through a block, with copies of its weights in the type of the passes."""
        sizes = self.sizes
        activations = {"activations of one pass": sizes.pass_tokens * sizes.passes(backward=backward).peak}
        return activations | ({"weights of one block": copies * sizes.block * sizes.size} if copies else {})

    def ends(self, tokens: float) -> tuple[Items, Items]:
        """Memory of the embedding's rows of a text, and of the head."""
        row = float(self.sizes.width * self.sizes.size)
        rows = min(tokens, self.sizes.vocabulary)
        return {"rows of the embedding": rows * row}, {"head": self.sizes.vocabulary * row}

    def streams(self, count: float) -> Items:
        """Residual streams with this number of elements for all processes: on the device, or in a file.

        Large ones are on the device too if they fit into a quarter of its free memory, but count as files.
        """
        size = count * self.sizes.size
        if size / self.processes <= STREAMS:
            return {"residual streams": size / self.processes}
        self.scratch = size
        return {}

    @property
    def on_cpu(self) -> bool:
        """Whether the device's memory is the machine's."""
        return self.device.type == "cpu"

    @property
    def processes(self) -> int:
        """Number of processes that share the work."""
        return self.sizes.processes

    @property
    def flops(self) -> float:
        """Number of operations."""
        return float(sum(self.work[kind] for kind in OPERATIONS))

    def parts(self, rates: Rates) -> dict[str, float]:
        """Seconds by kind of work, without a limit."""
        return {
            kind: max(amount / rates.by_kind[kind], self.moved[kind] / rates.bandwidth)
            / (1 if kind in ONE_PROCESS else self.processes)
            for kind, amount in self.work.items()
            if kind in rates.by_kind
        }

    def unbounded(self, rates: Rates) -> float:
        """Seconds without a limit."""
        return sum(self.parts(rates).values())

    def seconds(self, rates: Rates) -> float:
        """Seconds of the stage."""
        return min(self.unbounded(rates), self.bound)

    @property
    def disk_bytes(self) -> float:
        """Peak disk use of the stage, without output of other stages."""
        return self.disk + self.scratch

    @property
    def items(self) -> Items:
        """What is in the device's memory, which is the machine's on a CPU."""
        return self.held | self.ram if self.on_cpu else self.held

    @property
    def device_bytes(self) -> float:
        """Peak memory of the device; on a CPU, all memory of one process."""
        return sum(self.items.values())

    @property
    def ram_bytes(self) -> float:
        """Peak memory of the machine for all processes together."""
        return self.processes * sum((self.items if self.on_cpu else self.ram).values())

    @property
    def room(self) -> float:
        """Bytes that a process may use on its device; processes share a CPU's."""
        return self.memory * RESERVE / (self.processes if self.on_cpu else 1)
