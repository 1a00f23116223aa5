"""What every measure is: items in a fixed order, and one score of each for a model.

Scores of two models on the same items are compared item by item (`paired.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Measure(ABC):
    """Items, and how a model's answers to them are scored.

    Attributes:
        name: What the user called it: `sciq`, `answers.jsonl` or `check.py:score`.
        resumes: Whether scores of the first items can be kept, and the others computed later.
        changes_model: Whether it may leave another model behind, so that the next measure loads the model anew.
    """

    name: str
    resumes: bool = False
    changes_model: bool = False

    @property
    @abstractmethod
    def digest(self) -> str:
        """What identifies the items and the way in which they are scored."""

    @abstractmethod
    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: int = 0) -> Iterator[float]:
        """The score of each item in order, without the first `known` ones.

        Larger is better, and 0 is worst; most scores are 0 or 1. `known` is 0 unless the measure resumes. All
        processes call it, and get the same scores. Raises MeasureError, which names the item.
        """

    def texts(self) -> Sequence[str]:
        """The text of each item, to look for it in the text of a run; empty if it isn't known."""
        return ()
