"""How much text a run reads, by purpose, and how much of it the dense model writes itself."""

from __future__ import annotations

from collections.abc import Collection

from darwinlm.recipe import Recipe
from darwinlm.steps.text.sources import parts_of
from darwinlm.steps.text.splits import PURPOSES

SELF = "self"
"""Source that stands for text which the dense model writes itself."""
SPARE, SPARE_BLOCKS = 1.05, 4
"""Factor and blocks above the tokens that are needed, because documents don't end at the borders of purposes. Chats of
SmolLM2-135M filled their purposes with a factor of 1 and 2 blocks."""
GRADIENT_TOKENS, GRADIENT_SHARE = 8192, 8
"""Most calibration tokens for the gradients of the loss, and the part of the calibration text that they are: an eighth.
Measured databases have these amounts (docs/notebook/database.md)."""


def shares_of(recipe: Recipe) -> dict[str, int]:
    """Number of tokens for each purpose."""
    settings, training = recipe.text, recipe.search.training_needed
    shares = {
        "calibration": settings.calibration_tokens,
        "fitness": recipe.search.fitness_needed,
        "validation": settings.validation_tokens,
        "evaluation": settings.evaluation_tokens,
    }
    return {**shares, "training": training} if training else shares


def gradient_tokens(calibration_tokens: int) -> int:
    """Number of calibration tokens for the gradients of the loss."""
    return min(max(calibration_tokens // GRADIENT_SHARE, 1), GRADIENT_TOKENS)


def named_parts(source: str) -> list[str]:
    """The sources that a string names; `self` is never a file."""
    return [source] if source == SELF else parts_of(source)


def amount_for_pruning(recipe: Recipe, purposes: Collection[str] = PURPOSES) -> int:
    """Tokens of its own that the dense model writes for some purposes; 0 if the text isn't its own."""
    tokens = sum(count for purpose, count in shares_of(recipe).items() if purpose in purposes)
    return _amount(recipe, tokens, recipe.text.source)


def amount_for_recovery(recipe: Recipe) -> int:
    """Tokens of its own that the dense model writes for recovery; 0 if the text isn't its own."""
    settings = recipe.recovery
    return _amount(recipe, settings.tokens / settings.epochs, settings.text or recipe.text.source)


def _amount(recipe: Recipe, tokens: float, source: str | None) -> int:
    parts = named_parts(source or "")
    own = tokens * parts.count(SELF) / len(parts)
    return int(SPARE * own) + SPARE_BLOCKS * recipe.text.sequence_length if own else 0
