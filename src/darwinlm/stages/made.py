"""What the steps of a run give each other."""

from __future__ import annotations

from dataclasses import dataclass

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.stages.export import Exported
from darwinlm.stages.recover import Recovered
from darwinlm.stages.refit import Refitted
from darwinlm.stages.text import Texts
from darwinlm.stages.vocabulary import CutVocabulary
from darwinlm.units.cost import CostModel


@dataclass(frozen=True)
class Inputs:
    """What a run reads; sizes of a sweep share it.

    Attributes:
        original: The dense model, with all of its tokens.
        dense: The same with the smaller vocabulary, if there is one.
        latency: Costs in time, if the budget is one.
    """

    original: Checkpoint
    dense: Checkpoint
    vocabulary: CutVocabulary | None
    text: Texts
    latency: CostModel | None


@dataclass(frozen=True)
class Corrected:
    """The smaller model after refit and training, and as it is saved."""

    refit: Refitted | None
    recovered: Recovered | None
    exported: Exported
