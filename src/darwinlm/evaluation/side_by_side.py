"""Benchmark scores of several models in one table, with remarks about figures that can't be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from darwinlm.evaluation.harness import TaskScore
from darwinlm.evaluation.summary import average, notes, percent, with_error
from darwinlm.runtime.tables import Table


def task_table(models: Mapping[str, Sequence[TaskScore]]) -> Table:
    """Scores by task, one column for each model, and the difference of two models.

    Scores are treated as independent, so the standard error of a difference is that of unpaired samples.
    """
    scores = {name: {score.task: score for score in each} for name, each in models.items()}
    tasks = list(dict.fromkeys(task for each in scores.values() for task in each))
    pair = len(scores) == 2
    headings = ("task", "shots", *(f"{name}, %" for name in scores), *(["difference"] if pair else []))
    cells = []
    remarks: list[str] = []
    for task in tasks:
        row = [scores[name].get(task) for name in scores]
        unlike = _unlike(list(scores), row)
        remarks += [unlike] if unlike else []
        one = next(score for score in row if score is not None)
        line = [one.title.partition(" (")[0], "" if one.shots is None else str(one.shots)]
        line += ["-" if score is None else _cell(score.value, score.stderr, failed=bool(score.error)) for score in row]
        pairs = [(None, None) if score is None else (score.value, score.stderr) for score in row]
        cells.append((*line, *([_difference(pairs)] if pair and not unlike else ["-"] if pair else [])))
    if len(tasks) > 1 and not remarks:
        means = [average(list(each.values())) for each in scores.values()]
        pairs = [(mean.value, mean.stderr) for mean in means]
        line = ["average", "", *(_cell(*both) for both in pairs)]
        cells.append((*line, *([_difference(pairs)] if pair else [])))
    for name, each in scores.items():
        remarks += [f"{name}: {note}" for note in notes(list(each.values()))]
    return headings, cells, remarks


def _unlike(names: Sequence[str], row: Sequence[TaskScore | None]) -> str:
    """Reason why scores of a task can't be compared; empty if they can."""
    there = [(name, score) for name, score in zip(names, row, strict=True) if score is not None]
    title = there[0][1].title
    if len(there) < len(names):
        missing = ", ".join(name for name, score in zip(names, row, strict=True) if score is None)
        return f"{title}: not scored in {missing}"
    scored = [(name, score) for name, score in there if score.value is not None]
    descriptions = {name: f"{score.items} items, {score.shots} shots, {score.metric}" for name, score in scored}
    if len(set(descriptions.values())) > 1:
        return f"{title}: measured differently: " + "; ".join(f"{name} {how}" for name, how in descriptions.items())
    return "" if len(scored) == len(there) else f"{title}: failed in one of them"


def _cell(value: float | None, stderr: float | None, *, failed: bool = False) -> str:
    return "failed" if failed else "-" if value is None else with_error(value, stderr)


def _difference(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    (first, first_error), (second, second_error) = pairs
    if first is None or second is None:
        return "-"
    spread = None if first_error is None or second_error is None else math.hypot(first_error, second_error)
    return f"{100 * (second - first):+.2f} ± {percent(spread)}"
