"""Settings of the search that every search method has: how much is proposed, evaluated and kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from darwinlm.runtime.quantities import Minutes, Repeats, Seed, Whole
from darwinlm.runtime.section import Section


class SelectionRound(Section):
    """One round of selection in a generation; all candidates are evaluated on the same tokens."""

    tokens: Whole = Field(gt=0)
    """Fitness tokens for each candidate."""
    survivors: Repeats = Field(gt=0)
    """Number of candidates that survive the round."""
    training_tokens: Whole = Field(0, ge=0)
    """Training tokens of each candidate before its evaluation, in addition to earlier rounds; 0 for none."""


class SearchAmounts(Section):
    """Amounts of the search, whatever its method is."""

    minutes: Minutes | None = Field(None, gt=0)
    """Time limit of the search (30, 30m, 1h, 90s); it then returns the best allocation so far."""
    layers: Literal["auto", "unequal", "equal", "first"] = "auto"
    """`equal`: all layers have the same sizes, and whole blocks may be removed; the family's own class and every engine
    run such a model. `unequal` layers often lose less. `auto` is equal if the GGUF file that `units.quantisation` asks
    for needs it. `first`, for models that read and a recovery: as many of the first layers as fit into the budget,
    unchanged; nothing is searched for."""
    generations: Repeats = Field(12, ge=1)
    """Maximum number of generations; the paper has 200. More than ten of `gradient` end when ten gained nothing
    significant."""
    offspring: Repeats = Field(12, ge=1)
    """Maximum number of candidates in a generation; the paper has 16."""
    rounds: tuple[SelectionRound, ...] = (
        SelectionRound(tokens=2048, survivors=2),
        SelectionRound(tokens=8192, survivors=1),
    )
    """Rounds of selection as in the paper: `tokens` of fitness text, `survivors`, and `training_tokens` before the
    evaluation. The largest `tokens` is the amount of fitness text, of which `gradient` uses a different part in the
    first round of each generation."""
    seed: Seed = 0
    """Seed of all random choices of the search."""

    @property
    def narrows(self) -> bool:
        """Whether modules may become narrower, so that they are calibrated, searched for and corrected."""
        return self.layers != "first"

    @property
    def training_needed(self) -> int:
        """Number of training tokens that the search needs."""
        return sum(selection.training_tokens for selection in self.rounds)

    @property
    def fitness_needed(self) -> int:
        """Number of fitness tokens that the search needs."""
        return max(selection.tokens for selection in self.rounds)
