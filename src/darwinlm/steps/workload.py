"""What steps compute their costs from: the sizes of a run on one device, and what several steps hold in memory.

Work is in operations of passes; that of a backward pass is twice a forward one's. In the steps' costs, r is the
residual width, k the kept share of the blocks, d the columns of a module's output projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from darwinlm.model.walk.decoder import LOGIT_TOKENS, head_tokens
from darwinlm.model.walk.hidden import STREAMS
from darwinlm.runtime.memory import FRAGMENTS
from darwinlm.runtime.section import Section
from darwinlm.runtime.step import Work
from darwinlm.steps.run_sizes import RunSizes

AnySection = TypeVar("AnySection", bound=Section)
Memory = dict[str, float]
"""Bytes by what they hold."""

FORWARD, BACKWARD, SAVED = 2.4, 6.7, 5.1
"""Numbers that a block holds for each of `RunSizes.channels` at the peak of a pass, at that of a pass with gradients,
and from such a pass to its backward pass. Counted for Llama, Qwen2 and Qwen3 (2026-11-30): 2.4, 6.0 to 7.4, 4.4 to
5.8."""
EXACT = {2: 5.6, 4: 1.4}
"""Time of an operation of removal orders, factors and solves on a CPU, relative to one of passes, by the bytes of a
number in passes. Measured on 2026-11-30, as the next two."""
ALONE, TOGETHER = 30.0, 3.0
"""Time of an operation of a token that is generated alone, and of one of `ROWS` tokens that are generated together,
relative to one of passes."""
LIBRARIES = 0.45e9
"""Memory of Python, PyTorch and transformers without a model, measured on 2026-11-24."""
ROWS = 64
"""Number of texts that a model writes at once."""
EXACT_ON_GPU = 3.0
"""Time of an operation of removal orders, factors and solves on a GPU without float64, an estimate."""
LAUNCHES, HEAD_LAUNCHES, TOKEN_LAUNCHES = 46, 20, 50
"""Kernels of a block's pass, of the head for `LOGIT_TOKENS` tokens, and of a generated token outside the blocks.
Counted for Llama on the pretend GPU of the tests on 2026-12-02, as the next two."""
CUT_LAUNCHES = 60
"""Kernels of a module that is cut from its factor."""
MEETING = 6
"""Launches of a kernel in whose time one process of those that meet is heard, an estimate."""
MOVED, BACK = 24.0, 0.5
"""Numbers that a block's pass reads and writes in a GPU's memory for each of `RunSizes.channels`, counted as well; and
how much more kernels and numbers a backward pass has than a forward one, for as many operations."""


def largest(*alternatives: Memory) -> Memory:
    """The items that need the most memory together, of those that are never in memory at once."""
    return max(alternatives, key=lambda items: sum(items.values()))


class Workload:
    """Sizes of a run on a device, and what several steps hold there.

    Attributes:
        sizes: Sizes of the model under the recipe.
        shares: Number of tokens of text for each purpose.
        on_cpu: Whether the device is a CPU.
        memory: Bytes of the device for one process.
        passing, backward: Activations of a pass, and of one with gradients.
        head, block: Bytes of the output head, and of the largest block.
        widest: Largest number of columns of an output projection.
        slow: Time of an operation of removal orders, factors and solves, in those of passes.
        exact: The same for second moments, of which half is computed.
        compared: Bytes of the logits and probabilities of two models, for the tokens that are compared at once.
        measured: Number of smaller models that a run measures.
    """

    def __init__(self, sizes: RunSizes, shares: Mapping[str, int], *, on_cpu: bool, memory: float) -> None:
        self.sizes = sizes
        self.shares = shares
        self.on_cpu = on_cpu
        self.memory = memory
        activations = float(sizes.pass_tokens * sizes.channels * sizes.size)
        self.passing: Memory = {"activations": FORWARD * activations}
        self.backward: Memory = {"activations": BACKWARD * activations}
        self.head = float(sizes.vocabulary * sizes.width * sizes.size)
        self.block = float(sizes.block * sizes.size)
        self.widest = max(float(shape.sizes.width) for shape in sizes.shapes)
        self.slow = EXACT[sizes.size] if on_cpu else EXACT_ON_GPU
        self.exact = self.slow if on_cpu else 1.0
        tokens = head_tokens(sizes.vocabulary * sizes.size, on_cpu=on_cpu)
        self.compared = tokens * sizes.vocabulary * (4.0 + 2 * sizes.size)

    def settings(self, kind: type[AnySection]) -> AnySection:
        """A section of the recipe."""
        return self.sizes.recipe.section(kind)

    def share(self, blocks: int) -> float:
        """Part of the work on so many blocks that the busiest process has."""
        return -(-blocks // self.sizes.processes) / blocks

    def multiplied(self, operations: float) -> Work:
        """Operations of products in the run's element type."""
        return Work(products=operations) if self.sizes.size == 2 else Work(float32=operations)

    def passes(
        self,
        tokens: float,
        kept: float = 1.0,
        *,
        blocks: float = 1.0,
        heads: float = 0.0,
        at_once: float | None = None,
    ) -> Work:
        """Passes through a model on a GPU; a process has its part of the tokens, but at least `at_once` of them."""
        sizes, least = self.sizes, min(at_once or 0.0, self.sizes.pass_tokens, tokens)
        own = max(tokens / sizes.processes, least)
        calls = max(own / (least or sizes.pass_tokens), 1.0)
        through = blocks + BACK * max(blocks - 1, 0.0)  # all but the first are a pass back and the one before it
        pieces = max(own / LOGIT_TOKENS, calls) * heads
        logits = own * heads * sizes.vocabulary
        weights = calls * blocks * kept * sizes.blocks + pieces * sizes.width * sizes.vocabulary
        inside = own * through * sizes.depth * sizes.channels * MOVED * (1 + kept) / 2
        return self.multiplied(sizes.operations(own, kept, blocks=blocks, heads=heads)) + Work(
            moved=sizes.size * (weights + inside) + logits * (4 * sizes.size + 8),
            launches=calls * through * sizes.depth * LAUNCHES + pieces * HEAD_LAUNCHES,
        )

    def loading(self, params: float, walks: float = 1.0, *, staying: bool = False) -> Work:
        """Weights that every process reads from files and copies to its GPU; once if they can stay."""
        read = params * self.sizes.size * (1.0 if staying else walks)
        return Work(read=read, copied=read)

    def owning(self, params: float, walks: float = 1.0) -> Work:
        """Weights of blocks that processes share: each reads its own from files and copies them to its GPU."""
        return self.loading(params * self.share(self.sizes.depth), walks)

    def exchange(self, sent: float, meetings: float) -> dict[str, Work]:
        """The part of a step in which owners of blocks send so many bytes; in each block, processes meet."""
        if self.sizes.processes == 1:
            return {}
        return {"exchange": Work(sent=sent) + self.meeting(meetings * self.sizes.depth)}

    def meeting(self, count: float) -> Work:
        """Times that processes meet."""
        return Work(launches=count * MEETING * self.sizes.processes)

    def stay(self, params: float, beside: Memory) -> bool:
        """Whether so many weights stay on a GPU beside what a step needs."""
        return params * self.sizes.size + sum(beside.values()) <= (1 - FRAGMENTS) * self.memory

    def written(self, tokens: float, rows: float, kept: float = 1.0) -> Work:
        """Tokens that a whole model on a GPU generates, `rows` of them at a time: each time, all weights are read."""
        sizes = self.sizes
        steps = tokens / rows / sizes.processes
        weights = kept * sizes.blocks + sizes.width * sizes.vocabulary
        return self.multiplied(sizes.operations(tokens / sizes.processes, kept, heads=1)) + Work(
            moved=steps * weights * sizes.size,
            launches=steps * (sizes.depth * LAUNCHES + TOKEN_LAUNCHES),
        )

    def cutting(self, kept: float) -> Work:
        """All modules cut to a share of their columns on a GPU."""
        work, r = Work(), float(self.sizes.width)
        for shape in self.sizes.cut:
            d = float(shape.sizes.width)
            solve = Work(float32=r * (kept * d) ** 2, moved=4 * (3 * d * d + 4 * r * d), launches=CUT_LAUNCHES)
            work += solve * max(shape.sizes.experts, 1)
        return work

    def unpacking(self) -> Work:
        """Factors and targets of all modules on a GPU, from packed factors in main memory."""
        work, r = Work(), float(self.sizes.width)
        for shape in self.sizes.cut:
            d = float(shape.sizes.width)
            one = Work(
                float32=r * d * d, moved=4 * (4 * d * d + 3 * r * d), copied=2 * d * d + 2 * r * d, launches=d / 25
            )
            work += one * max(shape.sizes.experts, 1)
        return work

    def streams(self, tokens: float, count: float = 1) -> Memory:
        """Bytes of `count` residual streams of a text of `tokens` tokens; none if they lie in a file."""
        memory = tokens * count * self.sizes.width * self.sizes.size / self.sizes.processes
        return {"streams": memory} if memory <= STREAMS else {}

    def mapped(self, params: float, weight: int) -> float:
        """Bytes of the temporary files of a whole model with so many parameters that are stored in `weight` bytes each.

        There are none on a GPU, and none if the model is stored in the element type of the run.
        """
        return params * self.sizes.size if self.on_cpu and self.sizes.size != weight else 0.0

    def writing(self, rows: int, length: int) -> Memory:
        """Bytes of a whole model that writes `rows` texts at once, of `length` tokens each.

        On a CPU, its weights lie in mapped files.
        """
        sizes = self.sizes
        heads = sum(shape.sizes.groups * shape.sizes.head_dim for shape in sizes.shapes if shape.kind == "attention")
        row = 2.0 * heads * length * sizes.size
        weights = 0.0 if self.on_cpu else float(sizes.params * sizes.size)
        memory = {"keys and values": max(min(rows * row, (self.memory - weights) / 4), row)}
        memory["probabilities"] = rows * sizes.vocabulary * (12.0 + sizes.size)
        return memory if self.on_cpu else memory | {"whole models": weights}

    def reading(self, tokens: float, count: int) -> Memory:
        """Bytes of `count` models on the same text, block by block, then logits of a few tokens of two of them."""
        sizes = self.sizes
        memory = self.passing | {"blocks": 2 * self.block, "heads": 2 * self.head, "logits": self.compared}
        memory |= self.streams(tokens, count)
        return memory | {"rows of the embedding": count * min(tokens, sizes.vocabulary) * sizes.width * sizes.size}
