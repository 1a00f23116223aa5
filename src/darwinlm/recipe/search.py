"""The search section, and the preset with the paper's settings."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from darwinlm.recipe.base import Section
from darwinlm.recipe.quantities import Minutes, Repeats, Whole


class SearchStage(Section):
    """One round of selection in a generation; all candidates are evaluated on the same tokens."""

    tokens: Whole = Field(gt=0)
    """Fitness tokens for each candidate."""
    survivors: Repeats = Field(gt=0)
    """Number of candidates that survive the round."""
    training_tokens: Whole = Field(0, ge=0)
    """Training tokens of each candidate before its evaluation, in addition to earlier rounds; 0 for none."""


class TrainingSettings(Section):
    """Training of candidates before their evaluation: AdamW on float32 master weights, KL to the dense model."""

    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate after a warm-up of four steps; the paper has 1e-5 for models of 7B to 14B."""
    lora_rank: Repeats = Field(0, ge=0)
    """Rank of low-rank adapters that are trained instead of the weights, with less memory; 0 trains the weights."""


class SearchSettings(Section):
    """Evolution over allocations: one level for every module."""

    minutes: Minutes | None = Field(None, gt=0)
    """Time limit of the search (30, 30m, 1h, 90s); it then returns the best allocation so far."""
    method: Literal["gradient", "paper"] = "gradient"
    """`gradient`: children predicted from gradients of the loss and the database's estimates; any modules may trade,
    and steps shrink. `paper`: DarwinLM's level switch, one level up and one down within a kind."""
    generations: Repeats = Field(40, ge=1)
    """Maximum number of generations; the paper has 200."""
    offspring: Repeats = Field(12, ge=1)
    """Maximum number of candidates in a generation; the paper has 16."""
    stages: tuple[SearchStage, ...] = (
        SearchStage(tokens=2048, survivors=2),
        SearchStage(tokens=8192, survivors=1),
    )
    """Rounds of selection as in the paper: `tokens` of fitness text, `survivors`, and `training_tokens` before the
    evaluation. The largest `tokens` is the amount of fitness text, of which `gradient` uses a different part in the
    first round of each generation."""
    training: TrainingSettings = TrainingSettings()
    """Training of candidates, if a stage asks for it."""
    seed: Whole = 0
    """Seed of all random choices of the search, and of the split of the text."""

    @model_validator(mode="after")
    def _survivors_shrink(self) -> SearchSettings:
        if not self.stages:
            raise ValueError("stages: at least one is needed")
        counts = [self.offspring, *(stage.survivors for stage in self.stages)]
        if any(later >= earlier for earlier, later in pairwise(counts)):
            raise ValueError(f"stages: survivors must decrease, starting below the offspring, but they are {counts}")
        if counts[-1] != 1:
            raise ValueError(f"stages: the last one must leave one survivor, but it leaves {counts[-1]}")
        return self

    @property
    def training_needed(self) -> int:
        """Number of training tokens that the search needs."""
        return sum(stage.training_tokens for stage in self.stages)

    @property
    def fitness_needed(self) -> int:
        """Number of fitness tokens that the search needs."""
        return max(stage.tokens for stage in self.stages)


PAPER: dict[str, Any] = {
    "units": {"attention": "query_head", "levels": "paper"},
    "database": {"saliency": "output"},
    "text": {"looking_back": 0},
    "search": {
        "method": "paper",
        "generations": 200,
        "offspring": 16,
        "stages": [
            {"tokens": 1024, "survivors": 8, "training_tokens": 10_000},
            {"tokens": 2048, "survivors": 4, "training_tokens": 50_000},
            {"tokens": 4096, "survivors": 2, "training_tokens": 100_000},
            {"tokens": 8192, "survivors": 1, "training_tokens": 200_000},
        ],
    },
    "refit": {"tokens": 0},
}
"""The settings of DarwinLM (arXiv 2502.07780). docs/method.md lists them, and what has no setting."""

PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": PAPER}


def completed(given: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """A recipe's tree with the fields of its preset that the user didn't give."""
    filled = dict(given)
    for name, value in preset.items():
        if name not in filled:
            filled[name] = value
        elif isinstance(value, dict) and isinstance(filled[name], dict):
            filled[name] = completed(filled[name], value)
    return filled
