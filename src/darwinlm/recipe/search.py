"""The search section, and the preset with the paper's own numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from darwinlm.recipe.base import Section
from darwinlm.recipe.quantities import Minutes


class SearchStage(Section):
    """One round of selection inside a generation: all of its candidates are judged on the same tokens."""

    tokens: int = Field(gt=0)
    """Fitness tokens that each candidate is judged on; at most `text.fitness_tokens`."""
    survivors: int = Field(gt=0)
    """How many candidates go on."""
    training_tokens: int = Field(0, ge=0)
    """Training text that each candidate learns from before it is judged, on top of earlier rounds; 0 for none."""


class TrainingSettings(Section):
    """How candidates are trained before they are judged: AdamW on float32 master weights, KL to the dense model."""

    learning_rate: float = Field(1e-4, gt=0)
    """Largest step size; it rises over the first four steps and stays."""
    lora_rank: int = Field(0, ge=0)
    """Rank of low-rank adapters that are trained in place of the weights; 0 trains the weights themselves."""
    batch_tokens: int = Field(2048, gt=0)
    """Training tokens in one step."""


class SearchSettings(Section):
    """Evolution over allocations: one level for every module."""

    minutes: Minutes | None = Field(None, gt=0)
    """Wall-clock bound (30, 30m, 1h, 90s): the search then ends with the best allocation found so far."""
    method: Literal["gradient", "paper"] = "gradient"
    """`gradient`: children that a gradient of the loss and the database's estimates speak for; attention and MLP may
    trade, and steps shrink. `paper`: DarwinLM's level switch, one level up and one down within a kind."""
    generations: int = Field(40, ge=1)
    """Rounds of offspring and selection."""
    offspring: int = Field(12, ge=1)
    """Most candidates of a generation."""
    stages: tuple[SearchStage, ...] = (
        SearchStage(tokens=2048, survivors=2),
        SearchStage(tokens=8192, survivors=1),
    )
    """Rounds of selection. With `gradient` the first one reads another part of the text in each generation."""
    training: TrainingSettings = TrainingSettings()
    """How candidates are trained, where a stage asks for it."""
    seed: int = 0
    """Seed of every random choice of the search and of the split of the text."""

    @model_validator(mode="after")
    def _survivors_shrink(self) -> SearchSettings:
        if not self.stages:
            raise ValueError("stages: at least one is needed")
        _shrink("stages", "the offspring", [self.offspring, *(stage.survivors for stage in self.stages)])
        return self

    @property
    def training_needed(self) -> int:
        """Tokens of training text that the search reads."""
        return sum(stage.training_tokens for stage in self.stages)

    @property
    def fitness_needed(self) -> int:
        """Tokens of fitness text that the search reads."""
        return max(stage.tokens for stage in self.stages)


def _shrink(field: str, first: str, counts: list[int]) -> None:
    if any(later >= earlier for earlier, later in pairwise(counts)):
        raise ValueError(f"{field}: survivors must shrink from {first} on, but they are {counts}")
    if counts[-1] != 1:
        raise ValueError(f"{field}: the last one must leave one survivor, but it leaves {counts[-1]}")


PAPER: dict[str, Any] = {
    "units": {"levels": "paper"},
    "database": {"saliency": "output"},
    "text": {"looking_back": 0, "fitness_tokens": 8192, "training_tokens": 360_000},
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
}
"""The numbers and rules of DarwinLM (arXiv 2502.07780): one level between modules of one kind, from a uniform start."""

PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": PAPER}


def apply_preset(tree: Any) -> Any:
    """A recipe's tree with the fields of its preset filled in where the user gave none."""
    if not isinstance(tree, dict) or tree.get("preset") not in PRESETS:
        return tree
    return _fill(tree, PRESETS[tree["preset"]])


def _fill(given: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    filled = dict(given)
    for name, value in preset.items():
        if name not in filled:
            filled[name] = value
        elif isinstance(value, dict) and isinstance(filled[name], dict):
            filled[name] = _fill(filled[name], value)
    return filled
