"""The search section, and the preset with the paper's own numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from darwinlm.recipe.base import Section
from darwinlm.recipe.quantities import Minutes

UNESTIMATED_LEVELS = 3
"""Levels of each module whose loss is measured where nothing else is said and the database has no estimates."""

Start = Literal["knapsack", "uniform", "random", "ziplm"]


class SearchStage(Section):
    """One round of selection inside a generation: all of its candidates are judged on the same tokens."""

    tokens: int = Field(gt=0)
    """Fitness tokens that each candidate is judged on."""
    survivors: int = Field(gt=0)
    """How many candidates go on."""
    training_tokens: int = Field(0, ge=0)
    """Training text that each candidate learns from before it is judged, on top of earlier rounds; 0 for none."""


class FinalistRound(Section):
    """One round of training and selection among the finalists."""

    training_tokens: int = Field(gt=0)
    """Training text that each finalist learns from in this round, on top of earlier rounds."""
    survivors: int = Field(gt=0)
    """How many go on."""


class Training(Section):
    """How candidates are trained before they are judged: AdamW on float32 master weights, KL to the dense model."""

    learning_rate: float = Field(1e-4, gt=0)
    """Largest step size; it rises over the first tenth and stays."""
    lora_rank: int = Field(0, ge=0)
    """Rank of low-rank adapters that are trained in place of the weights; 0 trains the weights themselves."""
    batch_tokens: int = Field(2048, gt=0)
    """Training tokens in one step."""


class Search(Section):
    """Evolution over allocations: one level for every module."""

    start: Start | None = None
    """The first parent. `knapsack`: single-module losses, solved exactly; `ziplm`: local errors, solved exactly;
    `uniform`; `random`. None takes `uniform` where a descent on the database's estimates goes on from there, which it
    ends lower from, and `knapsack` where there is none or `score_levels` are measured."""
    score_tokens: int = Field(1024, gt=0)
    """Fitness tokens for single-module losses that are measured."""
    score_levels: int | None = Field(None, ge=0)
    """Levels of each module whose loss is measured; between them it follows the module's local error. Where the
    database has estimates, the mean of both is taken; 0 takes the estimates as they are. None measures nothing where
    there are estimates (`database.saliency: loss`), 3 levels elsewhere."""
    score_adaptive: bool = True
    """Where levels were measured, then measure those that the budget chose too, and choose again: about a quarter more
    losses."""
    generations: int = Field(40, ge=1)
    """Rounds of mutation and selection."""
    offspring: int = Field(12, ge=1)
    """Candidates made from the parent in each generation."""
    stages: tuple[SearchStage, ...] = (
        SearchStage(tokens=2048, survivors=4),
        SearchStage(tokens=8192, survivors=1),
    )
    """Rounds of selection; the parent takes part in the last."""
    trade: Literal["any", "same_kind"] = "any"
    """`any`: attention and MLP may trade, steps anneal. `same_kind`: the paper's switch, one level between equals."""
    step: float = Field(0.25, gt=0, le=1)
    """Largest level switch of the first generation, as a share of a module's levels; it shrinks to one level."""
    screen: bool = True
    """Propose many children and evaluate those that earlier evaluations speak for; a quarter stays random."""
    slope_tokens: int = Field(4096, ge=0)
    """Fitness tokens, as far as there are so many, on which the gradient of the loss is taken at every new best
    allocation: proposals are screened by it, and up to half of the children solved for. 0 for none; needs `screen` and
    `trade: any`."""
    descent_steps: int = Field(12, ge=0)
    """Most steps from the start downhill before the evolution, each of one gradient and a few children that are solved
    for; three in a row that find nothing better end it. 0 for none; where gradients are off there are none."""
    descent_tokens: int = Field(2048, gt=0)
    """Fitness tokens of one step's gradient, and of the window behind them on which its children are measured; steps
    go round the text of the last stage."""
    recombine: int = Field(3, ge=0)
    """Candidates of a generation that join the switches of its best children, made after the first stage has told
    which those are: two of them, three, and so on. 0 for none; children that are trained aren't joined."""
    finalists: int = Field(0, ge=0)
    """Best distinct allocations of the evolution that are trained before the last choice; 0 leaves that out."""
    finalist_rounds: tuple[FinalistRound, ...] = (
        FinalistRound(training_tokens=16384, survivors=2),
        FinalistRound(training_tokens=49152, survivors=1),
    )
    """Rounds of training and selection among the finalists; survivors go on from their trained weights."""
    training: Training = Training()
    """How candidates are trained."""
    proxy: Literal["none", "gradient"] = "none"
    """`gradient`: finalists are also ranked by how well their gradients agree with the dense model's (TraceNAS);
    without rounds of training that rank decides."""
    seed: int = 0
    """Of every random choice of the search and of the split of the text."""
    minutes: Minutes | None = Field(None, gt=0)
    """Wall-clock bound (30, 30m, 1h, 90s): the search then ends with the best allocation found so far."""

    @model_validator(mode="after")
    def _survivors_shrink(self) -> Search:
        if not self.stages:
            raise ValueError("stages: at least one is needed")
        _shrink("stages", "the offspring", [self.offspring, *(stage.survivors for stage in self.stages)])
        if self.finalists and self.finalist_rounds:
            if self.finalists < 2:
                raise ValueError("finalists: one alone needs no selection; give at least 2, or 0")
            counts = [self.finalists, *(part.survivors for part in self.finalist_rounds)]
            _shrink("finalist_rounds", "the finalists", counts)
        if self.finalists and not self.finalist_rounds and self.proxy == "none":
            raise ValueError("finalists: nothing would tell them apart; give finalist_rounds or proxy: gradient")
        return self

    @property
    def training_needed(self) -> int:
        """Tokens of training text that the search reads."""
        inside = sum(stage.training_tokens for stage in self.stages)
        after = sum(part.training_tokens for part in self.finalist_rounds) if self.finalists else 0
        return max(inside, after)

    def levels_measured(self, *, estimated: bool) -> int:
        """Levels of each module whose loss is measured, from a database that has estimates or none."""
        if self.score_levels is not None:
            return self.score_levels
        return 0 if estimated else UNESTIMATED_LEVELS

    def first_parent(self, *, estimated: bool) -> Start:
        """Where the search starts, on a database that has estimates or none."""
        if self.start is not None:
            return self.start
        unmeasured = estimated and not self.levels_measured(estimated=True)
        return "uniform" if unmeasured and self.descends else "knapsack"

    @property
    def uses_slopes(self) -> bool:
        """Whether gradients of the loss propose children."""
        return self.screen and self.trade == "any" and self.slope_tokens > 0

    @property
    def descends(self) -> bool:
        """Whether the search goes downhill first."""
        return self.uses_slopes and self.descent_steps > 0

    @property
    def fitness_needed(self) -> int:
        """Tokens of fitness text that the search reads."""
        return max([self.score_tokens, *(stage.tokens for stage in self.stages)])


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
        "start": "uniform",
        "generations": 200,
        "offspring": 16,
        "trade": "same_kind",
        "screen": False,
        "recombine": 0,
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
