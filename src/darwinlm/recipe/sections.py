"""The whole configuration in stage order: one schema for Python, YAML files and the command line.

Every field has a default that suits a first run; `darwinlm schema` prints them. Unknown fields are errors, with a
suggestion if a similar one exists.
"""

from __future__ import annotations

from itertools import pairwise
from math import lcm
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from darwinlm.recipe.base import Section
from darwinlm.recipe.budget import BudgetSettings
from darwinlm.recipe.quantisation import GROUPS, known_quantisation
from darwinlm.recipe.quantities import Minutes, Part, Repeats, Share, Whole, parse_share
from darwinlm.recipe.recovery import RecoverySettings
from darwinlm.recipe.search import PRESETS, SearchSettings, completed

AttentionUnit = Literal["kv_group", "group_heads", "query_head", "lattice"]
ExpertUnit = Literal["both", "whole", "width"]


class ComputeSettings(Section):
    """Device and precision of the computation."""

    device: str = "auto"
    """`auto` (the first GPU if there is one), `cpu`, `cuda`, `cuda:1` ..."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Element type of forward and backward passes. `auto` is bfloat16 on GPUs and on processors that are fast with it
    (AMX, or AMD's AVX-512), else float32. Second moments, factors, KL and trained weights are always float32 or
    better."""
    batch_tokens: Whole = Field(4096, gt=0)
    """Tokens in one forward pass, and in one micro-batch of recovery. Fewer need less memory."""


class TextSettings(Section):
    """Text for calibration, search, training and evaluation; the parts are disjoint by document."""

    source: str | None = "hf:HuggingFaceFW/fineweb-edu"
    """A local .txt, .jsonl[.gz], .parquet or .arrow file, a folder of them, or `hf:owner/name[:config][@split]`. A
    field with the text or a chat can follow: `#field`, `#question+answer`."""
    sequence_length: Repeats = Field(512, ge=8)
    """Length in tokens of the sequences into which the text is cut."""
    looking_back: Share = Field(0.2, ge=0, le=0.5)
    """Share of tokens that repeat earlier passages of the same sequence, in all text except evaluation text, so that
    the smaller model still uses its context. 0 turns repetition off."""
    calibration_tokens: Whole = Field(65536, gt=0)
    """Tokens that are run through the model to see which parts matter, and for the refit; more make a better model. An
    eighth of them, at most 8192, also gives gradients of the loss."""
    validation_tokens: Whole = Field(8192, gt=0)
    """Tokens for choices that must not use the fitted text, such as the strength of the refit."""
    evaluation_tokens: Whole = Field(16384, gt=0)
    """Tokens for the figures in the report; no choice depends on them."""
    allow_benchmark_text: str = ""
    """Reason, in words, for using evaluation text of a benchmark. Without one such text is refused."""


class UnitsSettings(Section):
    """Units of removal, and levels of each module."""

    attention: AttentionUnit = "lattice"
    """`kv_group`: whole KV groups. `group_heads`: one query head of every KV group. `lattice`: KV groups times query
    heads per group, for unmodified engines. `query_head`: any query head, while K and V stay (the paper's; without
    grouping, K and V are removed too)."""
    experts: ExpertUnit = "both"
    """What is removed from a mixture of experts. `whole`: whole experts. `width`: the same number of channels from
    every expert. `both`: experts and channels. At least as many experts as a token uses stay, or the whole mixture is
    removed."""
    mlp_multiple: Repeats = Field(32, gt=0)
    """MLP widths are multiples of this: 32 suits Q8_0 and Q4_0, 256 suits K-quants."""
    quantisation: str | None = None
    """Quantisation that will follow: q4_k_m and the other K-quants (groups of 256 columns), awq, gptq and w4a16 (128),
    fp8, int8 and q8_0 (32). MLP widths, and query heads times head size, are then multiples of the group, except in
    modules that stay dense."""
    levels: Literal["all", "paper"] | tuple[Share, ...] = "all"
    """`all` levels of the units; `paper`: 0, 10 % ... 100 % removed; or a list of shares to keep, such as
    [75%, 50%, 25%]. Removed and dense are always among the levels."""

    @field_validator("quantisation")
    @classmethod
    def _quantisation_is_known(cls, name: str | None) -> str | None:
        return None if name is None else known_quantisation(name)

    @property
    def group(self) -> int:
        """Columns of a group of the quantisation; 1 without one."""
        return 1 if self.quantisation is None else GROUPS[self.quantisation]

    @property
    def mlp_step(self) -> int:
        """Common multiple of all MLP widths."""
        return lcm(self.mlp_multiple, self.group)

    @field_validator("levels")
    @classmethod
    def _levels_are_shares(cls, levels: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(levels, str) and not all(0 <= share <= 1 for share in levels):
            raise ValueError("must be all, paper, or shares from 0 to 100 %")
        return levels

    @property
    def shares(self) -> tuple[float, ...] | None:
        """Allowed shares of a module; None if every level is allowed."""
        if self.levels == "all":
            return None
        if self.levels == "paper":
            return tuple(tenth / 10 for tenth in range(11))
        return tuple(sorted({0.0, 1.0, *self.levels}))


class DatabaseSettings(Section):
    """Second-order pruning of every module at every level."""

    saliency: Literal["output", "loss"] = "loss"
    """Weighting of output errors in the removal order: by their effect on the `loss`, or equal (`output`, as in the
    paper). `loss` made uniform models 0.14 nats better."""
    folder: str | None = None
    """Finished database of this model to use, instead of building one."""


class RefitSettings(Section):
    """Least-squares correction of the stitched model's output projections towards the dense residual stream."""

    tokens: Whole = Field(65536, ge=0)
    """Calibration tokens for the fit; at most `text.calibration_tokens`. 0 skips the refit."""


class EvaluationSettings(Section):
    """Measurements for the report."""

    prompts: tuple[str, ...] = ("The capital of France is", "Water boils when", "To make bread, you first")
    """Prompts that every model continues greedily."""


class ExportSettings(Section):
    """Format of the saved model."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Element type; `auto` is the checkpoint's, or bfloat16 if the model came from a GGUF file."""


class Recipe(Section):
    """A whole run."""

    model: str | None = None
    """Hub id, local folder, or GGUF file."""
    preset: Literal["default", "paper"] = "default"
    """`paper`: the DarwinLM paper's text, units, order and search, and no refit, for fields that aren't given."""
    teacher: str | None = None
    """The original dense model, for distillation and for comparisons in the report; none uses `model`."""
    vocabulary: Part | None = Field(None, gt=0)
    """Tokens of the vocabulary to keep, as a share or a number: 50% or 24k, rounded up to a multiple of 64. Those that
    `text.source` uses most are kept; other text takes more tokens. None keeps all."""
    rounds: tuple[Share, ...] = ()
    """Descending shares of the block parameters: prune to the first, recover, prune the result to the next, and so on.
    `budget.keep` is the last of them. The rounds share `recovery.tokens`."""
    time: Minutes | None = Field(None, gt=0)
    """Time limit of the run (30, 30m, 1h, 90s). Before each stage, the amount of text and the number of steps are
    lowered until the rest fits, or refit and recovery are left out; the report says what was shortened."""
    allow_remote_code: bool = False
    """Whether a checkpoint may run its own Python code."""
    compute: ComputeSettings = ComputeSettings()
    """Device and arithmetic."""
    text: TextSettings = TextSettings()
    """Text of all stages."""
    units: UnitsSettings = UnitsSettings()
    """Units and levels."""
    database: DatabaseSettings = DatabaseSettings()
    """The pruning database."""
    budget: BudgetSettings = BudgetSettings()
    """Size of the result."""
    search: SearchSettings = SearchSettings()
    """Search for the levels."""
    refit: RefitSettings = RefitSettings()
    """Correction of the stitched model."""
    recovery: RecoverySettings = RecoverySettings()
    """Training afterwards."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Measurements for the report."""
    export: ExportSettings = ExportSettings()
    """The saved model."""

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, data: Any) -> Any:
        preset = PRESETS.get(data.get("preset", "")) if isinstance(data, dict) else None
        return data if preset is None else completed(data, preset)

    @model_validator(mode="before")
    @classmethod
    def _rounds_end_at_the_budget(cls, tree: Any) -> Any:
        rounds = tree.get("rounds") if isinstance(tree, dict) else None
        if not isinstance(rounds, (list, tuple)) or not rounds:
            return tree
        shares = [parse_share(share) for share in rounds]
        if not all(isinstance(share, (int, float)) for share in shares):
            return tree
        if any(not 0 < share < 1 for share in shares) or any(later >= earlier for earlier, later in pairwise(shares)):
            raise ValueError(f"rounds: shares must decrease and lie between 0 and 1, but they are {list(rounds)}")
        budget = tree.get("budget") or {}
        if isinstance(budget, BaseModel):
            budget = budget.model_dump()
        keep = parse_share(budget.get("keep"))
        if keep is not None and keep != shares[-1]:
            raise ValueError(f"budget.keep is {budget['keep']}, but rounds end at {rounds[-1]}: leave budget.keep out")
        return {**tree, "budget": {**budget, "keep": shares[-1]}}

    @model_validator(mode="after")
    def _time_is_of_one_round(self) -> Recipe:
        if self.time is not None and self.rounds:
            raise ValueError("time: it can't be limited with rounds; set search.minutes and recovery.tokens")
        return self
