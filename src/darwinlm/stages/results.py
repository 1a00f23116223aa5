"""Results of the stages of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from darwinlm.report.summary import Summary, VocabularyFigures
from darwinlm.runtime.figures import ModelFigures, ModelKey
from darwinlm.search.problem.problem import Problem
from darwinlm.stages.database import PruningDatabase
from darwinlm.stages.export import Exported
from darwinlm.stages.recover import Recovered
from darwinlm.stages.refit import Refitted
from darwinlm.stages.search import SearchResult
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import Texts


@dataclass(eq=False, repr=False)
class StageResults:
    """Result of each stage, by its name; a field exists once its stage has run, and is None if the recipe skips it."""

    vocabulary: VocabularyFigures | None = field(init=False)
    text: Texts = field(init=False)
    plan: Problem = field(init=False)
    database: PruningDatabase = field(init=False)
    search: SearchResult = field(init=False)
    stitch: Stitched = field(init=False)
    refit: Refitted | None = field(init=False)
    recover: Recovered | None = field(init=False)
    export: Exported = field(init=False)
    evaluate: dict[ModelKey, ModelFigures] = field(init=False)
    report: Summary = field(init=False)
