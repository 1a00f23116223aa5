"""What steps compute their costs from: the sizes of a run on one device, and what several steps hold in memory.

Work is in operations of passes; that of a backward pass is twice a forward one's. In the steps' costs, r is the
residual width, k the kept share of the blocks, d the columns of a module's output projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from darwinlm.model.walk.decoder import head_tokens
from darwinlm.model.walk.hidden import STREAMS
from darwinlm.runtime.section import Section
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
"""Time of an operation of removal orders, factors and solves on a GPU, an estimate."""


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
