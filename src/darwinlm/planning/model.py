"""Sizes of a model from its configuration alone, for plans.

Letters: m residual width, v vocabulary, d columns of an output projection, r its rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from darwinlm.database.levels import variants
from darwinlm.errors import ModelError, RecipeError, first_line
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import family_of
from darwinlm.families.gguf_header import read_header
from darwinlm.families.shapes import ModuleShape, module_shapes
from darwinlm.recipe import Recipe, merge
from darwinlm.search.problem.budget import Budget, resolve_budget
from darwinlm.search.problem.cost import CostModel
from darwinlm.search.problem.problem import counted_costs, space_of
from darwinlm.search.problem.space import SearchSpace
from darwinlm.stages.dtype import saved_dtype


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and a recipe.

    Attributes:
        checkpoint: Configuration and family, without weights.
        recipe: Units and budget.
        processes: Number of processes that share the work, each with its own device.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    processes: int = 1

    def with_settings(self, assignments: Sequence[str], processes: int) -> Sizes:
        """The same model with other settings, except units and budget."""
        other = Sizes(self.checkpoint, merge(self.recipe, assignments, {}), processes)
        for name in ("shapes", "space", "cost", "budget", "params"):
            other.__dict__[name] = getattr(self, name)
        return other

    @cached_property
    def shapes(self) -> list[ModuleShape]:
        """Shapes of all modules."""
        return module_shapes(self.checkpoint)

    @cached_property
    def space(self) -> SearchSpace:
        """Modules and their levels."""
        return space_of(self.recipe, self.checkpoint, self.shapes)

    @cached_property
    def cost(self) -> CostModel:
        """Costs in the unit of the budget. Raises RecipeError if they would have to be measured."""
        if self.recipe.budget.kind in ("speedup", "latency"):
            raise RecipeError(
                f"budget.{self.recipe.budget.kind} is measured on the device when the run starts: plan with keep, "
                "params or bytes"
            )
        dtype = saved_dtype(self.recipe, self.checkpoint)
        return counted_costs(
            self.recipe.budget, self.checkpoint, self.space, self.shapes, outside=self.outside, dtype=dtype
        )

    @cached_property
    def budget(self) -> Budget:
        """Bounds on the modules' cost. Raises BudgetError."""
        return resolve_budget(self.cost, self.recipe.budget)

    @cached_property
    def params(self) -> int:
        """Number of parameters of the dense model; a tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.checkpoint.skeleton().parameters())

    @property
    def blocks(self) -> int:
        """Number of parameters in its blocks."""
        return self.space.params(self.space.dense)

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
        if self.cost.unit == "bytes":
            return round(self.kept * self.blocks * self.budget.lower / self.budget.upper), round(
                self.kept * self.blocks
            )
        return self.budget.lower, self.budget.upper

    @property
    def block(self) -> int:
        """Number of parameters of the largest block."""
        inside: dict[int, int] = {}
        for module in self.space.modules:
            inside[module.block] = inside.get(module.block, 0) + module.levels[-1].params
        return max(inside.values())

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
    def element(self) -> int:
        """Bytes of one saved weight; those of float32 if the configuration has no type."""
        return int(getattr(self.checkpoint.dtype, "itemsize", 4))

    def is_cut(self, shape: ModuleShape) -> bool:
        """Whether a module has several levels."""
        levels = next(m.levels for m in self.space.modules if (m.block, m.kind) == (shape.block, shape.kind))
        return len(levels) > 1

    def active(self, shape: ModuleShape) -> float:
        """Number of a module's parameters that a token uses; for a mixture, those of the chosen experts."""
        levels = next(m for m in self.space.modules if (m.block, m.kind) == (shape.block, shape.kind)).levels
        if not shape.experts:
            return levels[-1].params
        chosen = getattr(self.checkpoint.config, "num_experts_per_tok", shape.experts)
        return levels[-1].params * chosen / shape.experts

    @cached_property
    def forward(self) -> float:
        """Operations of one token's pass through all dense blocks, including attention over the context.

        Attention multiplies queries with all keys of the text block, including masked ones, and weights with values.
        """
        length = self.recipe.text.sequence_length
        products = sum(2 * self.active(shape) for shape in self.shapes)
        return products + sum(4 * length * shape.width for shape in self.shapes if shape.kind == "attention")

    @property
    def head(self) -> float:
        """Operations of one token's logits."""
        return 2.0 * self.width * self.vocabulary

    def factor_count(self, shape: ModuleShape) -> int:
        """Number of removal orders of a module: one for each variant, and one more if heads are ranked first."""
        if shape.kind == "mlp":
            return max(shape.experts, 1)
        count = len(variants(shape, self.recipe.units))
        return count if count == 1 else count + 1


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
