"""Single-module losses: what the whole model loses when one module alone is at a level.

The database estimates them to second order where it was made with output gradients (`database/factors.py`). A few
levels of each module can be measured too (KL on few tokens, the blocks before the module reused); those of the others
are taken as a piecewise linear function of the module's local error. Where there are both, their mean chooses best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from darwinlm.database.store import DatabaseReader
from darwinlm.errors import NumericsError
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.problem.space import Allocation, Curves, SearchSpace

Measured = dict[str, float]
"""Loss by "module:level"."""

MEASURED_TOGETHER = 8
"""Candidates that are handed to all processes at once."""


def local_errors(space: SearchSpace, database: DatabaseReader) -> Curves:
    """Relative local error of every level of every module."""
    return [[database.error(module.block, module.kind, level) for level in module.levels] for module in space.modules]


def estimated_losses(space: SearchSpace, database: DatabaseReader) -> Curves | None:
    """Estimated loss of every level of every module, in nats per token; None where the database has none."""
    found: list[list[float]] = []
    for module in space.modules:
        row = [database.loss(module.block, module.kind, level) for level in module.levels]
        if any(loss is None for loss in row):
            return None
        found.append([loss for loss in row if loss is not None])
    return found


def levels_to_measure(errors: Sequence[float], count: int) -> list[int]:
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


def spread_scores(errors: Sequence[float], measured: Mapping[int, float]) -> list[float]:
    """Losses of all levels from those of a few, monotone in the local error.

    Args:
        errors: relative local error of each level.
        measured: loss by level.
    """
    known = sorted({errors[level]: loss for level, loss in measured.items()}.items())
    xs = np.array([0.0, *(error for error, _ in known)])
    ys = np.maximum.accumulate(np.array([0.0, *(loss for _, loss in known)]))
    return [float(value) for value in np.interp(errors, xs, ys)]


def spread_all(errors: Curves, measured: Measured) -> Curves:
    """Losses of every level of every module from those that were measured."""
    of_module: list[dict[int, float]] = [{} for _ in errors]
    for name, loss in measured.items():
        index, level = map(int, name.split(":"))
        of_module[index][level] = loss
    return [spread_scores(row, found) for row, found in zip(errors, of_module, strict=True)]


def level_losses(errors: Curves, estimates: Curves | None, measured: Measured) -> Curves:
    """Losses of every level of every module from measured ones, and from estimates where there are any.

    Args:
        errors: relative local error of every level, which losses between the measured ones follow.
        estimates: estimated loss of every level, nats per token; the result is the mean of both kinds.
        measured: loss by "module:level".
    """
    spread = spread_all(errors, measured)
    if estimates is None:
        return spread
    return [
        [(first + second) / 2 for first, second in zip(*rows, strict=True)]
        for rows in zip(spread, estimates, strict=True)
    ]


def measure_levels(
    space: SearchSpace,
    errors: Curves,
    fitness: Fitness,
    *,
    n_tokens: int,
    n_levels: int,
    known: Measured,
    progress: Callable[[int, int], None] = lambda done, total: None,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Measure the losses of a few levels of every module alone, in nats per token.

    Args:
        space: modules and levels.
        errors: local error of every level of every module.
        fitness: evaluates; its base becomes the dense model.
        n_tokens: fitness tokens per evaluation.
        n_levels: levels measured for each module.
        known: losses that are known, filled in; those of an interrupted run are not measured again.
        progress: called with measured and total levels.
        save: called after a few, to keep `known`.

    Raises:
        NumericsError: a loss isn't finite.
    """
    wanted = [(index, level) for index, row in enumerate(errors) for level in levels_to_measure(row, n_levels)]
    measure(space, wanted, fitness, n_tokens=n_tokens, known=known, progress=progress, save=save)


def levels_around(curves: Curves, solution: Allocation) -> list[tuple[int, int]]:
    """The levels that an allocation chose, where they are pruned ones: where the curves matter most."""
    return [(index, level) for index, level in enumerate(solution) if level < len(curves[index]) - 1]


def measure(
    space: SearchSpace,
    wanted: Sequence[tuple[int, int]],
    fitness: Fitness,
    *,
    n_tokens: int,
    known: Measured,
    progress: Callable[[int, int], None] = lambda done, total: None,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Measure (module, level) pairs; see `measure_levels`. Raises NumericsError."""
    fitness.set_base(space.dense)
    missing = [pair for pair in wanted if f"{pair[0]}:{pair[1]}" not in known]
    done = len(wanted) - len(missing)
    for start in range(0, len(missing), MEASURED_TOGETHER):
        pairs = missing[start : start + MEASURED_TOGETHER]
        candidates = [(*space.dense[:index], level, *space.dense[index + 1 :]) for index, level in pairs]
        for (index, level), loss in zip(pairs, fitness.kls(candidates, n_tokens), strict=True):
            if not np.isfinite(loss):
                raise NumericsError(
                    f"{space.modules[index].name} at level {level} gives values that aren't finite: try "
                    "compute.dtype=float32 or more damping"
                )
            known[f"{index}:{level}"] = loss
        done += len(pairs)
        save()
        progress(done, len(wanted))
