"""Slopes of encoders, whose norms are behind the sums, against finite differences of the distance of embeddings."""

from functools import partial

import pytest
import torch
from tests.tiny.readers import tiny_embedder, tiny_pairs
from tests.tiny.whole import placed_in
from torch import nn

from darwinlm.model.families.block_parts import ChainedModules, chained
from darwinlm.model.objective.chosen import objective_of
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.slopes import Gradients

STEP = 1e-2
"""Distances are in float32, whose rounding a smaller step would multiply."""


class Between(nn.Module):
    """A step from one sub-layer's output toward another's, in the place of a sub-layer's first module."""

    def __init__(self, standing: nn.Module, other: nn.Module, step: float, pair: bool) -> None:
        super().__init__()
        self.standing, self.other, self.step, self.pair = standing, other, step, pair

    def forward(self, *arguments, **named):
        outputs = [module(*arguments, **named) for module in (self.standing, self.other)]
        here, there = (output[0] if isinstance(output, tuple) else output for output in outputs)
        mixed = torch.lerp(here, there, self.step)
        return (mixed, None) if self.pair else mixed


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta"])
def test_slopes_are_derivatives_of_the_distance(model_type, make_run, tmp_path):
    model = tiny_embedder(tmp_path / "embedder", model_type, "mean")
    pairs = tiny_pairs(tmp_path / "pairs.jsonl", queries=160)
    run = make_run(model, tmp_path / "run", text=pairs, keep="60%")
    placed, texts = placed_in(run, torch.float64)
    assert isinstance(placed.dense[0], ChainedModules)
    tokens, objective = texts["fitness"].tokens[:4], objective_of(placed.database.checkpoint)
    fitness = Fitness(placed, tokens, objective, batch_tokens=10**6)
    modules = placed.space.modules
    allocation = tuple((top, 0, top // 2)[index % 3] for index, top in enumerate(placed.space.dense))
    slopes, compared = Gradients(fitness, placed.database).around(allocation, (0, 4)), 0

    def after(index: int, level: int, step: float) -> float:
        placed.apply(allocation)
        present = [placed.module(place, at) for place, at in enumerate(allocation)]
        part = placed.decoder.family.module(modules[index].kind)
        between = partial(Between, present[index], placed.module(index, level), pair=part.pair)
        present[index] = chained(part, [between(step=step)])
        placed.place(present)
        return fitness.kl_in_place(tokens.numel())

    for index, row in enumerate(slopes):
        for level in {0, len(row) // 2, len(row) - 1} - {allocation[index]}:
            expected = (after(index, level, STEP) - after(index, level, -STEP)) / (2 * STEP)
            found = float(row[level] - row[allocation[index]])
            assert found == pytest.approx(expected, rel=2e-3, abs=2e-5), (modules[index], level)
            compared += abs(expected) > 1e-3
    assert compared > 5
