"""The whole configuration, in stage order. One schema serves Python, YAML files and the command line.

Every field has a default that suits a first run; `darwinlm schema` prints them. Unknown fields are errors, with a
suggestion when one is near.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, field_validator, model_validator

from darwinlm.recipe.base import Section
from darwinlm.recipe.budget import BudgetSettings
from darwinlm.recipe.quantities import Share, parse_share
from darwinlm.recipe.recovery import RecoverySettings
from darwinlm.recipe.search import SearchSettings, apply_preset

AttentionUnit = Literal["kv_group", "group_heads", "query_head", "lattice"]
ExpertUnit = Literal["both", "whole", "width"]


class ComputeSettings(Section):
    """Where and how exactly the arithmetic is done."""

    device: str = "auto"
    """`auto` (the first GPU if there is one), `cpu`, `cuda`, `cuda:1` ..."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of forward passes. `auto` is bfloat16 on a GPU and on a processor that is quick with it (AMX, or AMD's AVX-512),
    float32 on other ones. Second moments, factors and KL are float32 or better in any case."""
    batch_tokens: int = Field(4096, gt=0)
    """Tokens in one forward pass."""


class TextSettings(Section):
    """The text that is calibrated, searched and measured on; the parts are disjoint by document."""

    source: str | None = "hf:HuggingFaceFW/fineweb-edu"
    """A local .txt, .jsonl[.gz], .parquet or .arrow file, a folder of them, or `hf:owner/name[:config][@split]`."""
    sequence_length: int = Field(512, ge=8)
    """Tokens in one block of packed text."""
    document_tokens: int = Field(512, gt=0)
    """Most tokens taken from one document, so that a few thousand tokens come from many documents. Only a source that
    is too short gives more of each."""
    shuffle_documents: int = Field(10000, ge=0)
    """Documents that are held at once and drawn from at random, of all files together, since files are often ordered by
    book, topic or date. 0 takes documents in the order of the files."""
    looking_back: Share = Field(0.2, ge=0, le=0.5)
    """Share of the tokens of all text but evaluation text that repeat passages from before in the same block, so that
    the smaller model still reads its context. 0 leaves the text plain."""
    calibration_tokens: int = Field(65536, gt=0)
    """For the second moments of the database, and for the refit."""
    fitness_tokens: int = Field(8192, gt=0)
    """For scoring modules and candidates."""
    validation_tokens: int = Field(8192, gt=0)
    """For choices that must not be made on the text that was fitted: refit or not, and how strongly."""
    training_tokens: int = Field(0, ge=0)
    """For training candidates of the search, where it trains any; recovery reads text of its own (`recovery.text`)."""
    evaluation_tokens: int = Field(16384, gt=0)
    """For the figures in the report; nothing is chosen by them."""
    allow_benchmark_text: str = ""
    """The reason, in words, for using a benchmark's own evaluation text. Without one it is refused."""


class UnitsSettings(Section):
    """The smallest things that are removed, and how many levels there are of each module."""

    attention: AttentionUnit = "lattice"
    """`kv_group`: whole KV groups. `group_heads`: one query head of every KV group. `lattice`: KV groups times query
    heads per group. `query_head`: any query head, K and V stay (the paper's; with as many KV heads they go too)."""
    experts: ExpertUnit = "both"
    """Of a mixture of experts. `whole`: experts with their rows of the router. `width`: channels, as many of every
    expert. `both`: the two together. As many experts as a token is sent to stay, unless the mixture goes as a whole."""
    mlp_multiple: int = Field(32, gt=0)
    """MLP widths are multiples of this: 32 suits Q8_0 and Q4_0, 256 suits K-quants."""
    levels: Literal["all", "paper"] | tuple[Share, ...] = "all"
    """`all` that the units allow; `paper`: 0, 10 % ... 100 % removed; or the shares that may be kept, such as
    [75%, 50%, 25%]. Nothing and everything are always among the levels."""

    @field_validator("levels")
    @classmethod
    def _levels_are_shares(cls, levels: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(levels, str) and not all(0 <= share <= 1 for share in levels):
            raise ValueError("must be all, paper, or shares from 0 to 100 %")
        return levels

    @property
    def shares(self) -> tuple[float, ...] | None:
        """Shares of a module that may be kept; None where every level may."""
        if self.levels == "all":
            return None
        if self.levels == "paper":
            return tuple(tenth / 10 for tenth in range(11))
        return tuple(sorted({0.0, 1.0, *self.levels}))


class DatabaseSettings(Section):
    """Second-order pruning of every module at every level."""

    damping: float = Field(0.01, gt=0)
    """Added to the diagonal of the second moment, relative to its mean."""
    saliency: Literal["output", "loss"] = "loss"
    """What the removal order spares: what the `loss` feels, or all errors of an `output` alike (as in the paper)."""
    saliency_tokens: int = Field(8192, gt=0)
    """Calibration tokens whose gradients say what the loss feels; at most `text.calibration_tokens` are used."""
    folder: str | None = None
    """A finished database of this model to search in, instead of making one."""


def _modules(value: Any) -> Any:
    """True and false as all kinds of modules and none."""
    if isinstance(value, bool):
        return ("attention", "mlp") if value else ()
    return value


Modules = Annotated[tuple[Literal["attention", "mlp"], ...], BeforeValidator(_modules)]


class RefitSettings(Section):
    """Least-squares correction of the stitched model's output projections toward the dense residual stream."""

    enabled: bool = True
    """False leaves the stitched model as it is."""
    tokens: int = Field(65536, gt=0)
    """Calibration tokens used; at most `text.calibration_tokens`."""
    ridges: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.03, 0.3), min_length=1)
    """Strengths that are tried for the pull toward the stitched weights, relative to the mean of the diagonal."""
    strengths: tuple[Annotated[Share, Field(gt=0, le=1)], ...] = Field((0.25, 0.5, 0.75, 1.0), min_length=1)
    """Shares of the way from the stitched weights to the fitted ones that are tried for the whole model; it takes the
    best of them on validation text, or none."""
    bias: Modules = ()
    """Fit a bias of the output projection along: false, true, or a list of attention and mlp. The family's
    configuration must have a field for it. The projections into such a module get biases of zeros, and all count."""
    inputs: Modules = ()
    """Fit the projections into a module too, kept where the module comes out better: false, true, or a list. Experts of
    a mixture stay as they are."""
    local_steps: int = Field(0, ge=0)
    """Steps of distillation of each block's weights toward the dense block after its fit, kept where they help."""
    local_rate: float = Field(2e-4, gt=0)
    """Learning rate of those steps."""
    local_tokens: int = Field(2048, gt=0)
    """Tokens in one of them."""


class EvaluationSettings(Section):
    """What the report measures."""

    prompts: tuple[str, ...] = ("The capital of France is", "Water boils when", "To make bread, you first")
    """Continued greedily by every model."""
    new_tokens: int = Field(32, gt=0)
    """Tokens of each continuation."""
    speed_runs: int = Field(3, ge=1)
    """Timed passes per model; the median is reported."""
    copying_lists: int = Field(16, ge=1)
    """Lists of words, and passages, of each length that every model has to copy."""


class ExportSettings(Section):
    """The form of the saved model."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` is the checkpoint's own type; bfloat16 where the model came from a GGUF file."""


class BaselinesSettings(Section):
    """Settings of the other methods that `darwinlm compare` runs."""

    random_tries: int = Field(16, ge=1)
    """Random allocations of which the best is taken; with `search.minutes`, at most as many as there is time for."""
    sheared_tokens: int = Field(65536, gt=0)
    """Calibration tokens that masks and weights are trained on; the text is repeated when it is shorter."""
    sheared_batch_tokens: int = Field(2048, gt=0)
    """Tokens in one of those steps."""
    sheared_rate: float = Field(1e-4, ge=0)
    """Learning rate of the weights; 0 learns the masks alone."""
    sheared_mask_rate: float = Field(0.3, gt=0)
    """Learning rate of the masks."""
    sheared_warmup: Share = Field(0.5, gt=0, le=1)
    """Share of the steps in which the target falls from everything to the budget."""


class Recipe(Section):
    """A whole run."""

    model: str | None = None
    """Hub id, local folder, or GGUF file."""
    preset: Literal["default", "paper"] = "default"
    """`paper`: the numbers and rules of DarwinLM, where a field isn't given otherwise."""
    teacher: str | None = None
    """The original dense model: what recovery distils from and the report compares with; none takes `model`."""
    rounds: tuple[Share, ...] = ()
    """Shares of the block parameters, falling: prune to the first, recover, prune what came of it to the next ...
    `budget.keep` is the last of them, and every round gets its part of `recovery.tokens`."""
    allow_remote_code: bool = False
    """Let a checkpoint run Python code that it brings along."""
    compute: ComputeSettings = ComputeSettings()
    """Device and arithmetic."""
    text: TextSettings = TextSettings()
    """Calibration, fitness, validation and evaluation text."""
    units: UnitsSettings = UnitsSettings()
    """What is removed at once."""
    database: DatabaseSettings = DatabaseSettings()
    """Pruning of single modules."""
    budget: BudgetSettings = BudgetSettings()
    """How small."""
    search: SearchSettings = SearchSettings()
    """Which levels."""
    refit: RefitSettings = RefitSettings()
    """Correction of the stitched model."""
    recovery: RecoverySettings = RecoverySettings()
    """Training afterwards."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """Measurements for the report."""
    export: ExportSettings = ExportSettings()
    """What is saved."""
    baselines: BaselinesSettings = BaselinesSettings()
    """Other methods to compare with."""

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, data: Any) -> Any:
        return apply_preset(data)

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
            raise ValueError(f"rounds: shares must fall and lie between 0 and 1, but they are {list(rounds)}")
        budget = tree.get("budget") or {}
        if isinstance(budget, BaseModel):
            budget = budget.model_dump()
        keep = parse_share(budget.get("keep"))
        if keep is not None and keep != shares[-1]:
            raise ValueError(f"budget.keep is {budget['keep']}, but rounds end at {rounds[-1]}: leave budget.keep out")
        return {**tree, "budget": {**budget, "keep": shares[-1]}}

    @model_validator(mode="after")
    def _tokens_suffice(self) -> Recipe:
        if self.search.training_needed > self.text.training_tokens:
            raise ValueError(
                f"search: its candidates train on {self.search.training_needed} tokens, but text.training_tokens is "
                f"{self.text.training_tokens}"
            )
        return self
