"""The whole configuration, in stage order. One schema serves Python, YAML files and the command line.

Every field has a default that suits a first run; `darwinlm schema` prints them. Unknown fields are errors, with a
suggestion when one is near.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

AttentionUnit = Literal["kv_group", "group_heads", "query_head", "lattice"]
Start = Literal["knapsack", "uniform", "random"]


def parse_share(value: Any) -> Any:
    """Read '50%' or 0.5 as the share 0.5; anything else is left to the type check."""
    if isinstance(value, bool):
        raise ValueError("must be a share such as 50% or 0.5, not true or false")  # noqa: TRY004 - pydantic reports ValueError
    if isinstance(value, str):
        text = value.strip()
        try:
            return float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            return value
    return value


Share = Annotated[float, BeforeValidator(parse_share)]


class Section(BaseModel):
    """A closed, frozen part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Compute(Section):
    """Where and how exactly the arithmetic is done."""

    device: str = "auto"
    """`auto` (the first GPU if there is one), `cpu`, `cuda`, `cuda:1` ..."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of forward passes. `auto` is bfloat16; second moments, factors and KL are float32 or better in any case."""
    batch_tokens: int = Field(4096, gt=0)
    """Tokens in one forward pass."""


class Text(Section):
    """The text that is calibrated, searched and measured on; the parts are disjoint by document."""

    source: str | None = "hf:HuggingFaceFW/fineweb-edu"
    """A local .txt, .jsonl[.gz], .parquet or .arrow file, a folder of them, or `hf:owner/name[:config][@split]`."""
    sequence_length: int = Field(512, ge=8)
    """Tokens in one block of packed text."""
    calibration_tokens: int = Field(65536, gt=0)
    """For the second moments of the database, and for the refit."""
    fitness_tokens: int = Field(8192, gt=0)
    """For scoring modules and candidates."""
    validation_tokens: int = Field(8192, gt=0)
    """For choices that must not be made on the text that was fitted: refit or not, and how strongly."""
    evaluation_tokens: int = Field(16384, gt=0)
    """For the figures in the report; nothing is chosen by them."""
    allow_benchmark_text: str = ""
    """The reason, in words, for using a benchmark's own evaluation text. Without one it is refused."""


class Units(Section):
    """The smallest things that are removed, and how many levels there are of each module."""

    attention: AttentionUnit = "lattice"
    """`kv_group`: whole KV groups. `group_heads`: one query head of every KV group. `lattice`: KV groups times query
    heads per group. `query_head`: any query head, K and V stay (the paper's; with as many KV heads they go too)."""
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


class Database(Section):
    """Second-order pruning of every module at every level."""

    damping: float = Field(0.01, gt=0)
    """Added to the diagonal of the second moment, relative to its mean."""


class Budget(Section):
    """The bound that the smaller model must keep."""

    keep: Share = 0.5
    """Share of the block parameters that may stay: 0.5 or 50%."""
    tolerance: float = Field(0.005, gt=0, le=0.1)
    """Largest share of the budget that may stay unused."""

    @field_validator("keep")
    @classmethod
    def _keep_is_a_share(cls, keep: float) -> float:
        if not 0 < keep <= 1:
            hint = f"; did you mean {keep:g}%?" if 2 <= keep <= 100 else ""
            raise ValueError(f"must be above 0 and at most 100 %{hint}")
        return keep


class SearchStage(Section):
    """One round of selection inside a generation: all of its candidates are judged on the same tokens."""

    tokens: int = Field(gt=0)
    """Fitness tokens that each candidate is judged on."""
    survivors: int = Field(gt=0)
    """How many candidates go on."""


class Search(Section):
    """Evolution over allocations: one level for every module."""

    start: Start = "knapsack"
    """The first parent. `knapsack`: single-module losses, solved exactly; `uniform`; `random`."""
    score_tokens: int = Field(1024, gt=0)
    """Fitness tokens for single-module losses."""
    score_levels: int = Field(3, ge=1)
    """Levels of each module whose loss is measured; the others follow the module's local error."""
    generations: int = Field(40, ge=1)
    """Rounds of mutation and selection."""
    offspring: int = Field(12, ge=1)
    """Candidates made from the parent in each generation."""
    stages: tuple[SearchStage, ...] = (SearchStage(tokens=1024, survivors=3), SearchStage(tokens=4096, survivors=1))
    """Rounds of selection; the parent takes part in the last."""
    step: float = Field(0.25, gt=0, le=1)
    """Largest level switch of the first generation, as a share of a module's levels; it shrinks to one level."""
    screen: bool = True
    """Propose many children and evaluate those that earlier evaluations speak for; a quarter stays random."""
    seed: int = 0
    """Of every random choice of the search and of the split of the text."""
    minutes: float | None = Field(None, gt=0)
    """Wall-clock bound: the search then ends with the best allocation found so far."""

    @model_validator(mode="after")
    def _survivors_shrink(self) -> Search:
        counts = [self.offspring, *(stage.survivors for stage in self.stages)]
        if not self.stages:
            raise ValueError("stages: at least one is needed")
        if any(later >= earlier for earlier, later in pairwise(counts)):
            raise ValueError(f"stages: survivors must shrink from the offspring on, but they are {counts}")
        if counts[-1] != 1:
            raise ValueError(f"stages: the last one must leave one survivor, but it leaves {counts[-1]}")
        return self


class Refit(Section):
    """Least-squares correction of the stitched model's output projections toward the dense residual stream."""

    enabled: bool = True
    """False leaves the stitched model as it is."""
    tokens: int = Field(65536, gt=0)
    """Calibration tokens used; at most `text.calibration_tokens`."""
    ridges: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.03, 0.3), min_length=1)
    """Strengths that are tried for the pull toward the stitched weights, relative to the mean of the diagonal."""
    local_steps: int = Field(0, ge=0)
    """Steps of distillation of each block's weights toward the dense block after its fit, kept where they help."""
    local_rate: float = Field(2e-4, gt=0)
    """Learning rate of those steps."""
    local_tokens: int = Field(2048, gt=0)
    """Tokens in one of them."""
    input_memory: float = Field(4.0, ge=0)
    """GiB that each stream may use to keep one module's inputs; what doesn't fit is computed twice."""


class Evaluation(Section):
    """What the report measures."""

    prompts: tuple[str, ...] = ("The capital of France is", "Water boils when", "To make bread, you first")
    """Continued greedily by every model."""
    new_tokens: int = Field(32, gt=0)
    """Tokens of each continuation."""
    speed_runs: int = Field(3, ge=1)
    """Timed passes per model; the median is reported."""


class Export(Section):
    """The form of the saved model."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto` is the checkpoint's own type; bfloat16 where the model came from a GGUF file."""


class Baselines(Section):
    """Settings of the other methods that `darwinlm compare` runs."""

    random_tries: int = Field(16, ge=1)
    """Random allocations of which the best is taken."""
    sheared_tokens: int = Field(65536, gt=0)
    """Calibration tokens that masks and weights are trained on; the text is repeated when it is shorter."""
    sheared_batch_tokens: int = Field(2048, gt=0)
    """Tokens in one of those steps."""
    sheared_rate: float = Field(1e-4, ge=0)
    """Learning rate of the weights; 0 learns the masks alone."""
    sheared_mask_rate: float = Field(0.3, gt=0)
    """Learning rate of the masks."""
    sheared_warmup: float = Field(0.5, gt=0, le=1)
    """Share of the steps in which the target falls from everything to the budget."""


class Recipe(Section):
    """A whole run."""

    model: str | None = None
    """Hub id, local folder, or GGUF file."""
    allow_remote_code: bool = False
    """Let a checkpoint run Python code that it brings along."""
    compute: Compute = Compute()
    """Device and arithmetic."""
    text: Text = Text()
    """Calibration, fitness, validation and evaluation text."""
    units: Units = Units()
    """What is removed at once."""
    database: Database = Database()
    """Pruning of single modules."""
    budget: Budget = Budget()
    """How small."""
    search: Search = Search()
    """Which levels."""
    refit: Refit = Refit()
    """Correction of the stitched model."""
    evaluation: Evaluation = Evaluation()
    """Measurements for the report."""
    export: Export = Export()
    """What is saved."""
    baselines: Baselines = Baselines()
    """Other methods to compare with."""

    @model_validator(mode="after")
    def _tokens_suffice(self) -> Recipe:
        wanted = max([self.search.score_tokens, *(stage.tokens for stage in self.search.stages)])
        if wanted > self.text.fitness_tokens:
            raise ValueError(
                f"search: a stage asks for {wanted} tokens, but text.fitness_tokens is {self.text.fitness_tokens}"
            )
        if self.refit.enabled and self.refit.tokens > self.text.calibration_tokens:
            raise ValueError(
                f"refit.tokens is {self.refit.tokens}, but text.calibration_tokens is {self.text.calibration_tokens}"
            )
        return self
