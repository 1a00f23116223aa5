"""Sizes of the vocabulary that a budget for the whole model allows, and what remains for the blocks at each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.cost import CostModel
from darwinlm.runtime.errors import BudgetError
from darwinlm.runtime.sections import Sections
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.budget.search_problem import problem_of
from darwinlm.steps.vocabulary.choose import MULTIPLE
from darwinlm.steps.vocabulary.token_choice import ModelTokens
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings

TRIED = 7
"""Number of sizes between the smallest and the largest one that are measured first, in equal ratios."""


@dataclass(frozen=True)
class Sizes:
    """The search problem at any size of the vocabulary.

    Attributes:
        most: Number of tokens of the dense model.
        least: Smallest number of tokens that may be kept.
        latency: Costs of the dense model in time, if the budget is one.
        growth: Gives the factor by which text has more tokens if so many of them are kept.
    """

    recipe: Sections
    dense: Checkpoint
    most: int
    least: int
    latency: CostModel | None = None
    growth: Callable[[int], float] = lambda tokens: 1.0

    @classmethod
    def of(cls, recipe: Sections, dense: Checkpoint, tokens: ModelTokens) -> Sizes:
        """Sizes for a model with these tokens; `in_time` adds what a budget in time needs."""
        return cls(recipe, dense, len(tokens.tree.tokens), _rounded_up(len(tokens.always)))

    def in_time(self, latency: CostModel, growth: Callable[[int], float]) -> Sizes:
        """The sizes at a budget in time: a text that has more tokens takes more of it."""
        return replace(self, latency=latency, growth=growth)

    def problem(self, tokens: int) -> Problem:
        """The search problem with so many tokens, and no further rows in the embedding.

        Raises BudgetError if even the smallest blocks are too large.
        """
        rows = int(self.dense.config.vocab_size)
        times = self.latency and self.latency.with_tokens(tokens / rows, self.growth(tokens))
        return problem_of(self.recipe, self.dense, times, removed_tokens=rows - tokens)[0]

    def leaves_blocks_whole(self, tokens: int) -> bool:
        """Whether the budget needs nothing to be removed from the blocks."""
        return self.problem(tokens).whole

    def allows(self, tokens: int) -> bool:
        """Whether some blocks fit into the budget beside so many tokens."""
        try:
            self.problem(tokens)
        except BudgetError:
            return False
        return True

    def smallest(self) -> int:
        """The smallest useful number of tokens: with fewer, the blocks would have nothing to gain.

        Raises BudgetError if the budget needs nothing to be removed, or can't be met at all.
        """
        if not self.allows(self.most):
            self.problem(self.least)  # raises if the budget is too small for any vocabulary
        elif self.leaves_blocks_whole(self.most):
            problem_of(without_auto(self.recipe), self.dense, self.latency)  # raises if the whole model fits
        low, high = self.least // MULTIPLE, self.most // MULTIPLE + 1
        if not self.leaves_blocks_whole(self.least):
            return self.least
        while high - low > 1:  # low leaves the blocks whole, high doesn't
            middle = (low + high) // 2
            if self.allows(middle * MULTIPLE) and self.leaves_blocks_whole(middle * MULTIPLE):
                low = middle
            else:
                high = middle
        return low * MULTIPLE

    def first(self) -> list[int]:
        """Sizes to measure first, ascending. Raises BudgetError as `smallest`."""
        smallest = self.smallest()
        sizes = {min(_rounded_up(size), self.most) for size in np.geomspace(smallest, self.most, TRIED)}
        return [size for size in sorted({smallest, *sizes}) if self.allows(size)]

    def between(self, tried: list[int], best: int) -> list[int]:
        """Sizes halfway between the best one and its neighbours among those that were tried."""
        place = tried.index(best)
        neighbours = [tried[at] for at in (place - 1, place + 1) if 0 <= at < len(tried)]
        middles = {_rounded_up((best * neighbour) ** 0.5) for neighbour in neighbours}
        return [size for size in sorted(middles - set(tried)) if size < self.most and self.allows(size)]


def without_auto(recipe: Sections) -> Sections:
    """The recipe with the whole vocabulary."""
    name = next(name for name, value in recipe if isinstance(value, VocabularySettings))
    return recipe.model_copy(update={name: VocabularySettings()})


def _rounded_up(tokens: float) -> int:
    return -int(-tokens // MULTIPLE) * MULTIPLE
