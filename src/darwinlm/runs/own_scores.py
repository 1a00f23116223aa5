"""Models of a run on the user's measures: the dense one, sizes that are tried, equal layers, and the saved one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.evaluation.measures.measured import scores_of
from darwinlm.evaluation.measures.score_store import ScoreStore
from darwinlm.evaluation.measures.scored_model import ScoredModel
from darwinlm.evaluation.measures.seen_items import check_unseen
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.recipe import Recipe
from darwinlm.report.curve_figures import CurveFigures, CurvePoint
from darwinlm.runs.bound import KL, Judge, Scores, Within
from darwinlm.runtime.artifact import digest_of
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.run import Run
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.step import Modules
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.results import Corrected, Inputs
from darwinlm.steps.search.step import SearchResult
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.stitch.stitch import stitched_blocks

KL_ITEMS = 16
"""Groups of validation sequences that are items of the KL, so that it has a standard error."""


@dataclass
class OwnScores:
    """Scores of models of one run, or of the sizes of one, beside the dense model's.

    Attributes:
        run: The run that holds what sizes share.
        measures: The user's measures; none where the bound is on the KL.
        within: The bound; None without one.
    """

    run: Run[Recipe]
    inputs: Inputs
    measures: Sequence[Measure]
    within: Within | None = None
    store: ScoreStore = field(default_factory=ScoreStore)

    def check(self) -> None:
        """Refuse items that the run's text holds, and models that don't write, and check that scores can be kept.

        Raises DataError, RecipeError, StorageError.
        """
        objective = objective_of(self.inputs.dense)
        if objective.reads and (self.measures or self.within is not None):
            raise RecipeError(
                f"--measure and --within are for models that write, and {self.inputs.dense.source} gives "
                f"{objective.words()}: choose a size, such as --keep 75%,50%, and give the text labels, by which each "
                "size is scored"
            )
        if self.measures:
            self.store.check()
            check_unseen(self.measures, self.inputs.text, self.inputs.dense.tokenizer())

    @cached_property
    def judge(self) -> Judge:
        """What compares models with the dense one. Raises MeasureError."""
        return Judge(self.within, self.scores(Stitched(self.inputs.dense)))

    @property
    def nats(self) -> bool:
        """Whether models are judged by the KL."""
        return self.within is not None and self.within.nats

    def scores(self, model: Stitched) -> Scores:
        """Scores of a smaller model, or of the dense one. Raises MeasureError, NumericsError."""
        context = self.run.context
        if self.nats:
            return {KL: self._divergences(model)}
        other = model.step != ""
        scored = ScoredModel(
            model.checkpoint,
            context.dtype,
            context.device,
            weights=model.block if other else None,
            digest=model.digest if other else None,
            original=self.inputs.dense if other else None,
        )
        missing = [measure.name for measure in self.measures if not self.store.has(scored, measure)]
        whole = model.checkpoint is self.inputs.dense and not other
        with context.reporter.stage("scores"):
            if missing:
                context.reporter.say(f"scores: the {'dense' if whole else 'smaller'} model on {', '.join(missing)}")
            values = scores_of(scored, self.measures, self.store)
        return {measure.name: scores for measure, scores in zip(self.measures, values, strict=True)}

    def _divergences(self, model: Stitched) -> list[float]:
        """KL to the dense model on each group of validation sequences, in nats per token."""
        tokens, context = self.inputs.text["validation"].tokens, self.run.context
        groups = torch.tensor_split(tokens, min(KL_ITEMS, len(tokens)))
        if model.checkpoint is self.inputs.dense:
            return [0.0] * len(groups)
        dense = StreamedDecoder(self.inputs.dense, tokens, dtype=context.dtype, device=context.device)
        small = StreamedDecoder(
            model.checkpoint, tokens, dtype=context.dtype, device=context.device, weights=model.block
        )
        for decoder in (dense, small):
            decoder.reserve(0, 2)
        memory, n_tokens = HiddenMemory(context.folder), context.batch_tokens
        return [
            measure_quality(dense, {"small": small}, group, batch_tokens=n_tokens, memory=memory)["small"].kl
            for group in groups
        ]

    def curve(
        self,
        problem: Problem,
        database: Modules,
        search: SearchResult,
        corrected: Corrected,
        *,
        tried: Sequence[CurvePoint] = (),
        ended: str = "",
    ) -> CurveFigures:
        """The curve of a finished size: the dense model, sizes that were tried, equal layers, and the saved model."""
        judge, space = self.judge, problem.space
        whole = space.params(space.dense)

        def share(allocation: tuple[int, ...]) -> float:
            return round(space.params(allocation) / whole, 6)

        saved = self.scores(Stitched(corrected.exported.checkpoint))
        judge.check(saved)
        equal = self.scores(_uniform(database, search))
        own = space.params(search.allocation)
        points = [
            judge.point("dense", 1.0, whole + problem.outside, judge.dense),
            *sorted(tried, key=lambda point: -point.keep),
            judge.point("equal layers", share(search.uniform), space.params(search.uniform) + problem.outside, equal),
            judge.point("chosen", share(search.allocation), own + problem.outside, saved),
        ]
        return CurveFigures(
            within="" if self.within is None else self.within.words,
            items={name: len(scores) for name, scores in judge.dense.items()},
            nats=self.nats,
            bound=judge.worst,
            points=tuple(points),
            ended=ended,
            remarks=(*judge.remarks(saved), *_about(self.nats)),
        )


def _about(nats: bool) -> tuple[str, ...]:
    means = "KL to the dense model on validation text" if nats else "Scores"
    return (f"{means} with standard errors. The model with equal layers is the best one of its size, not corrected.",)


@dataclass(frozen=True)
class _Cut(Stitched):
    """A model that is cut from the database as it is read."""

    weights: Callable[[int], dict[str, torch.Tensor]] = field(kw_only=True)

    def block(self, block: int) -> dict[str, torch.Tensor]:
        """Weights of a block by name in it."""
        return self.weights(block)


def _uniform(database: Modules, search: SearchResult) -> Stitched:
    """The best model with equal layers."""
    checkpoint, weights = stitched_blocks(database.reader, search.uniform)
    return _Cut(checkpoint, digest_of([database.digest, list(search.uniform)]), weights=weights)
