"""Sizes of a model from its configuration alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from darwinlm.compute import DTYPES
from darwinlm.errors import ModelError, RecipeError, first_line
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import family_of
from darwinlm.families.gguf_header import read_header
from darwinlm.families.shapes import ModuleShape, module_shapes
from darwinlm.planning.counted import Passes, count_passes
from darwinlm.recipe import Recipe, merge
from darwinlm.search.problem.budget import Budget, resolve_budget
from darwinlm.search.problem.cost import CostModel
from darwinlm.search.problem.problem import counted_costs, dense_parameters, space_of
from darwinlm.search.problem.space import SearchSpace
from darwinlm.stages.dtype import saved_dtype


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and a recipe.

    Attributes:
        checkpoint: Configuration and family, without weights.
        recipe: Units and budget.
        processes: Number of processes that share the work, each with its own device.
        counted: Counts of passes that are known already.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    processes: int = 1
    counted: dict[tuple[Any, ...], Passes] = field(default_factory=dict, repr=False, compare=False)

    def with_settings(self, assignments: Sequence[str], processes: int | None = None) -> Sizes:
        """The same model with other settings, except units and budget."""
        recipe = merge(self.recipe, assignments, {})
        other = Sizes(self.checkpoint, recipe, processes or self.processes, self.counted)
        for name in ("skeleton", "shapes", "space", "cost", "budget"):
            other.__dict__[name] = getattr(self, name)
        return other

    @cached_property
    def skeleton(self) -> Any:
        """The dense model without data."""
        return self.checkpoint.skeleton()

    @cached_property
    def shapes(self) -> list[ModuleShape]:
        """Shapes of all modules."""
        parameters = self.skeleton.named_parameters(remove_duplicate=False)
        return module_shapes(self.checkpoint, {name: tuple(parameter.shape) for name, parameter in parameters})

    @cached_property
    def space(self) -> SearchSpace:
        """Modules and their levels."""
        return space_of(self.recipe, self.checkpoint, self.shapes)

    @cached_property
    def cut(self) -> list[ModuleShape]:
        """Shapes of modules with several levels."""
        return [shape for shape, module in zip(self.shapes, self.space.modules, strict=True) if len(module.levels) > 1]

    @cached_property
    def cost(self) -> CostModel:
        """Costs in the unit of the budget. Raises RecipeError if they would have to be measured."""
        budget = self.recipe.budget
        if budget.kind in ("speedup", "latency"):
            raise RecipeError(
                f"budget.{budget.kind} is measured on the device when the run starts: plan with keep, params or bytes"
            )
        dtype = saved_dtype(self.recipe, self.checkpoint)
        return counted_costs(budget, self.checkpoint, self.space, self.shapes, outside=self.outside, dtype=dtype)

    @cached_property
    def budget(self) -> Budget:
        """Bounds on the modules' cost. Raises BudgetError."""
        return resolve_budget(self.cost, self.recipe.budget)

    @property
    def params(self) -> int:
        """Number of parameters of the dense model; a tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.skeleton.parameters())

    @property
    def blocks(self) -> int:
        """Number of parameters in its blocks."""
        return dense_parameters(self.checkpoint, self.shapes)

    @property
    def block(self) -> int:
        """Number of parameters of the largest block."""
        blocks = self.skeleton.get_submodule(self.checkpoint.family.layers)
        return max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)

    @property
    def outside(self) -> int:
        """Number of parameters outside its blocks: embedding, head, last norm."""
        return self.params - self.blocks

    @property
    def kept(self) -> float:
        """Largest share of block parameters to keep; for a budget in bytes, share of the modules' bytes."""
        return self.budget.upper / (self.cost.dense - self.cost.fixed)

    @property
    def kept_blocks(self) -> tuple[int, int]:
        """Smallest and largest number of block parameters to keep; approximate for a budget in bytes."""
        if self.cost.unit != "bytes":
            return self.budget.lower, self.budget.upper
        most = self.kept * self.blocks
        return round(most * self.budget.lower / self.budget.upper), round(most)

    @property
    def small(self) -> int:
        """Largest number of parameters of the smaller model."""
        return self.kept_blocks[1] + self.outside

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.checkpoint.n_blocks

    @property
    def width(self) -> int:
        """Residual width."""
        return int(self.checkpoint.config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary."""
        return int(self.checkpoint.config.vocab_size)

    @property
    def linear_head(self) -> bool:
        """Whether logits are a linear function of the head's input (`search/evaluate/dense_side.py`)."""
        return not getattr(self.checkpoint.config, "final_logit_softcapping", None)

    @property
    def saved(self) -> int:
        """Bytes of one saved weight; those of float32 if the configuration has no type."""
        return int(getattr(self.checkpoint.dtype, "itemsize", 4))

    @property
    def kind(self) -> str:
        """Element type of forward passes."""
        return "float32" if self.recipe.compute.dtype == "float32" else "bfloat16"

    @property
    def recovery_kind(self) -> str:
        """Element type of products in recovery."""
        return "float32" if self.recipe.recovery.dtype == "float32" else "bfloat16"

    @property
    def size(self) -> int:
        """Bytes of a number in forward passes."""
        return DTYPES[self.kind].itemsize

    @property
    def pass_tokens(self) -> int:
        """Tokens in one pass."""
        return max(self.recipe.compute.batch_tokens, self.recipe.text.sequence_length)

    @property
    def forward(self) -> float:
        """Operations of one token's pass through all dense blocks."""
        return self.passes().flops

    @property
    def head(self) -> float:
        """Operations of one token's logits."""
        return 2.0 * self.width * self.vocabulary

    def passes(self, kept: float = 1.0, *, backward: bool = False, recovery: bool = False) -> Passes:
        """Costs of one token in the blocks.

        Args:
            kept: Share of the widths that the blocks keep.
            backward: Whether a backward pass follows.
            recovery: Whether weights and stream are float32, as in recovery, whatever the type of products is.
        """
        length, dtype, low = self.recipe.text.sequence_length, DTYPES[self.kind], None
        if recovery:
            length = self.recipe.recovery.sequence_length or length
            dtype, low = torch.float32, torch.bfloat16 if self.recovery_kind == "bfloat16" else None
        key = (length, dtype, low, backward, kept == 1)
        if key not in self.counted:
            self.counted[key] = count_passes(
                self.checkpoint, self.skeleton, length, dtype, low=low, backward=backward, thin=kept != 1
            )
        if kept == 1:
            return self.counted[key]
        none, whole = self.counted[key], self.passes(backward=backward, recovery=recovery)
        return Passes(*(a + kept * (b - a) for a, b in zip(astuple(none), astuple(whole), strict=True)))

    def activations(self, kept: float = 1.0, *, recovery: bool = False, checkpointing: bool = False) -> float:
        """Bytes of one token in a forward and backward pass.

        Args:
            kept: Share of the widths that the blocks keep.
            recovery: As in `passes`.
            checkpointing: Whether only the stream between blocks is saved, and blocks are recomputed.
        """
        one = self.passes(kept, backward=True, recovery=recovery)
        if checkpointing:
            return self.depth * self.width * (4 if recovery else self.size) + one.peak
        return one.saved + max(one.peak - one.saved / self.depth, 0.0)


@contextlib.contextmanager
def described(model: str, *, allow_remote_code: bool = False) -> Iterator[Checkpoint]:
    """A model's configuration, without its weights.

    Args:
        model: Hub id (only its config.json is fetched), folder, or GGUF file (only its header is read).
        allow_remote_code: Whether the checkpoint may run its own code.

    Raises:
        ModelError: There is no such model, or it can't be reached.
        FamilyError: Its architecture isn't known.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        yield Checkpoint.describe(path, model, allow_remote_code=allow_remote_code)
        return
    if path.is_file() and path.suffix == ".gguf":
        yield _gguf(path)
        return
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(f"there is no model at '{model}': give a folder, a GGUF file or a hub id such as owner/name")
    with TemporaryDirectory(prefix="darwinlm-") as work:
        yield Checkpoint.describe(_fetch(model, Path(work)), model, allow_remote_code=allow_remote_code)


def _gguf(path: Path) -> Checkpoint:
    from transformers import AutoConfig

    read_header(path)
    try:
        config: Any = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except (OSError, ValueError, ImportError, LookupError, TypeError, RuntimeError, AttributeError) as error:
        reason = first_line(error)
        raise ModelError(f"can't read the header of {path}: {reason}") from error
    # Such models are saved as bfloat16.
    config.dtype = "bfloat16"
    return Checkpoint(path.parent, config, family_of(config), str(path))


def _fetch(model: str, work: Path) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    try:
        return Path(hf_hub_download(name, "config.json", revision=revision or None)).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"can't find the configuration of '{model}' on this machine or on the hub ({reason}): check the name, the "
            f"network and your login, or give a folder that holds its config.json ({work.name} was tried)"
        ) from error
