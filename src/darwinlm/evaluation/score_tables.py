"""Scores of a suite as tables for the terminal or Markdown, with remarks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from darwinlm.evaluation.harness import TaskScore


def average(scores: Sequence[TaskScore]) -> tuple[float | None, float | None]:
    """Unweighted mean over tasks, as in the paper, and its standard error, for independent tasks.

    None if a task failed, because the mean of the others isn't comparable, or gives no standard error.
    """
    values = [score.value for score in scores if score.value is not None]
    errors = [score.stderr for score in scores if score.stderr is not None and math.isfinite(score.stderr)]
    if not scores or len(values) < len(scores):
        return None, None
    return sum(values) / len(values), math.hypot(*errors) / len(errors) if len(errors) == len(scores) else None


HEADINGS = ("task", "shots", "metric", "score, %", "standard error", "items")


def rows(scores: Sequence[TaskScore]) -> list[tuple[str, ...]]:
    """Cells under `HEADINGS`, the average last."""
    table: list[tuple[str, ...]] = []
    for score in scores:
        name = score.title.partition(" (")[0]
        shots = "" if score.shots is None else str(score.shots)
        if score.value is None:
            table.append((name, shots, "", "failed", "", ""))
            continue
        items = f"{score.items}" if score.items == score.total else f"{score.items} of {score.total}"
        table.append((name, shots, score.metric, percent(score.value), percent(score.stderr), items))
    if len(scores) > 1:
        table.append(("average", "", "", *map(percent, average(scores)), ""))
    return table


def number(value: float | None, digits: str) -> str:
    """A figure in the format `digits`; a dash for None."""
    return "-" if value is None else f"{value:{digits}}"


def with_error(value: float | None, stderr: float | None) -> str:
    """A share and its standard error in percent."""
    return f"{percent(value)} ± {percent(stderr)}"


def percent(value: float | None) -> str:
    """A share as a percentage with two decimals; a dash for None."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.2f}"


def notes(scores: Sequence[TaskScore]) -> list[str]:
    """Remarks: failures with reasons, deviations from the official data."""
    remarks = [f"{score.title} failed: {score.error}" for score in scores if score.error]
    remarks += [f"{score.title}: {score.remark}" for score in scores if score.remark]
    return remarks
