"""Results that pass between the parts of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.units.cost import CostModel
    from darwinlm.steps.export.step import Exported
    from darwinlm.steps.own_text.documents import Documents
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.vocabulary.step import CutVocabulary


@dataclass(frozen=True)
class Inputs:
    """What a run reads; sizes of a sweep share it.

    Attributes:
        original: The dense model, with all of its tokens.
        dense: The same with the smaller vocabulary, if there is one.
        text: Sequences of tokens by purpose.
        latency: Costs in time of the original, if the budget is one.
        own_text: Text that the dense model wrote itself, if it is one of the sources.
    """

    original: Checkpoint
    dense: Checkpoint
    vocabulary: CutVocabulary | None
    text: dict[str, TokenSequences]
    latency: CostModel | None
    own_text: Documents | None = None

    @property
    def times(self) -> CostModel | None:
        """Costs in time of the dense model, which may have fewer tokens than the original."""
        if self.latency is None or self.vocabulary is None:
            return self.latency
        figures = self.vocabulary.figures
        return self.latency.with_tokens(figures.tokens / int(self.original.config.vocab_size), figures.growth)


@dataclass(frozen=True)
class Corrected:
    """The smaller model after all corrections, as it is saved.

    Attributes:
        name: Name of the model among those that are measured.
    """

    name: str
    exported: Exported
