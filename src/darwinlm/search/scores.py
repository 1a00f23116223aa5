"""Single-module losses: what the whole model loses when one module alone is at a level.

A few levels of each module are measured (KL on few tokens, the blocks before the module reused); the others follow
the module's local error, which the database knows exactly: the loss is taken as a piecewise linear function of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from darwinlm.database.store import DatabaseReader
from darwinlm.search.fitness import Fitness
from darwinlm.search.space import SearchSpace

Scores = list[list[float]]


def levels_to_measure(errors: list[float], count: int) -> list[int]:
    """Which levels of a module to measure: none of it, and the ones that split the range of local errors evenly.

    Args:
        errors: relative local error of each level, the first gone, the last dense.
        count: how many to choose; fewer come back when the module has fewer levels, none when it is never cut.
    """
    if len(errors) == 1:
        return []
    pruned = list(range(len(errors) - 1))
    chosen = {0}
    for share in np.linspace(1, 0, count + 1)[1:-1]:
        # Errors fall off steeply, so the even split is made on their square root.
        chosen.add(min(pruned, key=lambda level: abs(errors[level] ** 0.5 - share * errors[0] ** 0.5)))
    return sorted(chosen)


def spread_scores(errors: list[float], measured: Mapping[int, float]) -> list[float]:
    """Losses of all levels from those of a few, monotone in the local error.

    Args:
        errors: relative local error of each level.
        measured: loss by level.
    """
    known = sorted({errors[level]: loss for level, loss in measured.items()}.items())
    xs = np.array([0.0, *(error for error, _ in known)])
    ys = np.maximum.accumulate(np.array([0.0, *(loss for _, loss in known)]))
    return [float(value) for value in np.interp(errors, xs, ys)]


def single_module_scores(
    space: SearchSpace,
    database: DatabaseReader,
    fitness: Fitness,
    *,
    n_tokens: int,
    n_levels: int,
    known: dict[str, float],
    progress: Callable[[int, int], None] = lambda done, total: None,
    save: Callable[[], None] = lambda: None,
) -> Scores:
    """Loss of every level of every module alone, in nats per token.

    Args:
        space: modules and levels.
        database: local errors.
        fitness: evaluates; its base becomes the dense model.
        n_tokens: fitness tokens per evaluation.
        n_levels: levels measured for each module.
        known: measured losses by "module:level", filled in; those of an interrupted run are not measured again.
        progress: called with finished and total modules.
        save: called after each module, to keep `known`.
    """
    fitness.set_base(space.dense)
    scores: Scores = []
    for index, module in enumerate(space.modules):
        errors = [database.error(module.block, module.kind, level) for level in module.levels]
        measured: dict[int, float] = {}
        for level in levels_to_measure(errors, n_levels):
            name = f"{index}:{level}"
            if name in known:
                fitness.evaluations += 1
            else:
                candidate = (*space.dense[:index], level, *space.dense[index + 1 :])
                known[name] = fitness.kl(candidate, n_tokens)
            measured[level] = known[name]
        scores.append(spread_scores(errors, measured))
        save()
        progress(index + 1, len(space.modules))
    return scores
