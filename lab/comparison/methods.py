"""The methods of `python -m lab compare`: each gives an allocation and a reader of the pruned modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.units.modules import ModuleReader
from darwinlm.model.units.space import Allocation
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.model.walk.items import ids
from darwinlm.model.walk.stream import BlockStream, stream_of
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.context import Context
from darwinlm.runtime.sections import Sections
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.step import PruningDatabase
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.module_cache import PlacedModules
from darwinlm.steps.search.search_settings import SearchSettings
from lab.comparison.allocations import (
    best_random,
    best_uniform,
    equal_experts,
    even_uniform,
    least_local_error,
    without_blocks,
)
from lab.comparison.importance import ExpertScores, activation_scores, block_influence, expert_scores, magnitude_scores
from lab.comparison.ranked import ExpertReader, RankedReader
from lab.comparison.sheared import shear


@dataclass(frozen=True)
class MethodResult:
    """Result of a method."""

    reader: ModuleReader
    allocation: Allocation
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodInputs:
    """Inputs of all methods; the database is None for those that don't use it."""

    context: Context
    recipe: Sections
    dense: Checkpoint
    calibration: Tensor
    fitness: Tensor
    plan: Problem
    database: PruningDatabase | None = None

    @property
    def reader(self) -> DatabaseReader:
        """Modules of the database."""
        assert self.database is not None
        return self.database.reader

    @property
    def stream(self) -> BlockStream:
        """The dense model's residual stream on the calibration text."""
        return stream_of(self.context, self.dense, self.calibration)

    def loss(self, reader: ModuleReader) -> Callable[[Allocation], float]:
        """KL to the dense model on the fitness tokens of the search's first stage."""
        n_tokens = self.recipe.section(SearchSettings).rounds[0].tokens
        tokens = self.fitness[: -(-n_tokens // self.fitness.shape[1])]
        decoder = StreamedDecoder(self.dense, tokens, dtype=self.context.dtype, device=self.context.device)
        placed = PlacedModules(decoder, reader, self.plan.space)
        fitness = Fitness(placed, tokens, batch_tokens=self.context.batch_tokens)
        return lambda allocation: fitness.kl(allocation, n_tokens)


def _from_database(inputs: MethodInputs, _: Path, *, measured: bool) -> MethodResult:
    reader, plan = inputs.reader, inputs.plan
    chosen = best_uniform(plan, inputs.loss(reader)) if measured else least_local_error(plan, reader)
    return MethodResult(reader, chosen)


TRIES = 16
"""Random allocations without `search.minutes`; with it, as many as there is time for."""


def _random(inputs: MethodInputs, _: Path) -> MethodResult:
    reader, recipe = inputs.reader, inputs.recipe
    minutes = recipe.section(SearchSettings).minutes
    chosen, tries = best_random(
        inputs.plan,
        inputs.loss(reader),
        tries=TRIES,
        seed=recipe.section(SearchSettings).seed,
        seconds=None if minutes is None else 60 * minutes,
    )
    return MethodResult(reader, chosen, {"tries": tries})


def _ranked_units(inputs: MethodInputs, _: Path, *, activations: bool) -> MethodResult:
    if activations:
        scores = activation_scores(inputs.stream, inputs.context.reporter.advance)
    else:
        scores = magnitude_scores(inputs.dense)
    reader = RankedReader(inputs.dense, inputs.recipe.section(UnitsSettings), scores)
    return MethodResult(reader, best_uniform(inputs.plan, inputs.loss(reader)))


def _shortgpt(inputs: MethodInputs, _: Path) -> MethodResult:
    influence = block_influence(inputs.stream, inputs.context.reporter.advance)
    chosen = without_blocks(inputs.plan, influence)
    return MethodResult(
        ModuleReader(inputs.dense, inputs.recipe.section(UnitsSettings)), chosen, {"block_influence": influence}
    )


def _ranked_experts(inputs: MethodInputs, _: Path, *, scores: Callable[[ExpertScores], Tensor]) -> MethodResult:
    chosen = equal_experts(inputs.plan)
    measured = expert_scores(inputs.stream, inputs.context.reporter.advance)
    by_block = {block: scores(of_block) for block, of_block in measured.items()}
    return MethodResult(ExpertReader(inputs.dense, inputs.recipe.section(UnitsSettings), by_block), chosen)


_reap = partial(_ranked_experts, scores=lambda experts: experts.added)
_frequency = partial(_ranked_experts, scores=lambda experts: experts.asked)


SHEARED_TOKENS, SHEARED_BATCH = 65536, 2048
"""Most calibration tokens for masks and weights of Sheared-LLaMA, and tokens in one step."""


def _sheared(inputs: MethodInputs, folder: Path) -> MethodResult:
    context, space = inputs.context, inputs.plan.space
    target = even_uniform(inputs.plan)
    tokens = ids(inputs.calibration)  # trained as ordinary text, openings included
    tokens = tokens[: -(-SHEARED_TOKENS // tokens.shape[1])]
    batches = torch.split(tokens, max(1, SHEARED_BATCH // tokens.shape[1]))
    model = inputs.dense.load(torch.float32, context.device)
    scores, record = shear(
        model,
        inputs.dense.family,
        module_shapes(inputs.dense),
        space.levels(target),
        batches,
        seed=inputs.recipe.section(SearchSettings).seed,
        progress=context.reporter.advance,
    )
    save_model(model.to("cpu"), folder / "trained")
    reader = RankedReader(Checkpoint.open(folder / "trained"), inputs.recipe.section(UnitsSettings), scores)
    return MethodResult(reader, target, record | {"tokens": tokens.numel()})


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        make: Function that computes the result; it may write files to the folder.
        database: Whether it uses the pruning database.
        searches: Whether `search.minutes` limits it.
        mixtures: Whether it ranks experts; `all` excludes such methods.
        blocks: Whether it removes whole blocks; `all` excludes it if some modules are never cut.
    """

    title: str
    source: str
    make: Callable[[MethodInputs, Path], MethodResult]
    database: bool = False
    searches: bool = False
    mixtures: bool = False
    blocks: bool = False


BASELINES = {
    "uniform": Method(
        "Uniform", "the best uniform allocation, same database", partial(_from_database, measured=True), True
    ),
    "random": Method("Random", "the best of random allocations, same database", _random, True, searches=True),
    "magnitude": Method("Magnitude", "arXiv 1506.02626, arXiv 2305.11627", partial(_ranked_units, activations=False)),
    "minitron": Method("Minitron-style width", "arXiv 2407.14679", partial(_ranked_units, activations=True)),
    "shortgpt": Method("ShortGPT", "arXiv 2403.03853", _shortgpt, blocks=True),
    "reap": Method("REAP", "arXiv 2510.13999, whole experts, equally many in every block", _reap, mixtures=True),
    "frequency": Method("Expert frequency", "experts that are used most often", _frequency, mixtures=True),
    "ziplm": Method("ZipLM", "arXiv 2302.04089", partial(_from_database, measured=False), True),
    "sheared": Method("Sheared-LLaMA-style", "arXiv 2310.06694", _sheared),
}
"""Methods by their names for `--methods`. `darwinlm` is the pipeline itself; refit and recovery may follow any."""
