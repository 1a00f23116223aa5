"""Stitch: the physically smaller model of the allocation, as a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.step import Cost, Step, Task, Work

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.database.step import Modules
    from darwinlm.steps.search.step import SearchResult
    from darwinlm.steps.workload import Workload


@dataclass(frozen=True)
class Stitched:
    """The smaller model before any correction, or any other model that a correction or a recovery starts from.

    A correction that stores less than the whole model gives a subclass with another `block`.

    Attributes:
        step: Digest of the step that made it; empty for a model that was given.
    """

    checkpoint: Checkpoint
    step: str = ""

    @property
    def digest(self) -> str:
        """What identifies it: the step that made it, or its weights and configuration."""
        return self.step or self.checkpoint.digest

    def block(self, block: int) -> dict[str, Tensor]:
        """Weights of a block by name in it."""
        return self.checkpoint.read(self.checkpoint.block_prefix(block))

    def model(
        self,
        dtype: torch.dtype | None = None,
        *,
        keep: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        on_block: Callable[[nn.Module], object] = lambda block: None,
    ) -> PreTrainedModel:
        """The model, in float32 without a `dtype`; `keep` and `on_block` as in `Checkpoint.load`."""
        import torch

        return self.checkpoint.load(dtype or torch.float32, weights=self.block, keep=keep, on_block=on_block)


@dataclass(frozen=True, eq=False)
class Stitch(Step[Stitched]):
    """The smaller model of an allocation, in the dense checkpoint's element types."""

    name = "stitch"
    version = 4
    writes = "the smaller model"
    together = True

    database: Modules
    search: SearchResult

    def work(self, task: Task) -> None:
        """Write the model, block by block. Raises NumericsError and StorageError."""
        from darwinlm.steps.stitch.stitch import write_stitched

        write_stitched(self.database.reader, self.search.allocation, task.folder / "model")

    def read(self, task: Task) -> Stitched:
        """The saved model."""
        from darwinlm.model.families.checkpoint import Checkpoint
        from darwinlm.runtime.memory import ALL

        self.database.reader.release(ALL)  # the factors of the search; later steps need the memory
        return Stitched(Checkpoint.open(task.folder / "model"), task.stage.digest)

    @classmethod
    def cost(cls, load: Workload) -> Cost:
        """Weights of every module at its level, from its factor."""
        sizes, r = load.sizes, load.sizes.width
        squares = sum(max(shape.sizes.experts, 1) * float(shape.sizes.width) ** 2 for shape in sizes.shapes)
        factors = {"factors of one module": 4 * load.widest * (load.widest + 2 * r), "blocks": load.block}
        work, model = load.slow * squares * r * (2 + sizes.kept**2), float(sizes.saved_params * sizes.stored)
        share, outside = load.share(sizes.depth), float(sizes.outside * sizes.stored)  # which the first process writes
        own = (model - outside) * share
        cut = (load.cutting(sizes.kept) + load.unpacking()) * share
        cut += Work(read=float(sizes.blocks * sizes.stored) * share + outside, copied=own)
        parts = {"modules": cut, "writing": Work(written=own + outside)}
        return Cost(work, factors, disk=model, parts=parts)
