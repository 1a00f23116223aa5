"""Scores of a suite as tables for the terminal or Markdown, with remarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from darwinlm.evaluation.harness import TaskScore


@dataclass(frozen=True)
class Average:
    """Mean of a suite's scores.

    Attributes:
        value: Unweighted mean over tasks, as in the paper; None if a task is missing.
        stderr: Standard error of the mean, for independent tasks; None if `value` is None or a task gives none.
        partial: Reason why the table is incomplete; empty if it is complete.
    """

    value: float | None
    stderr: float | None
    partial: str


def average(scores: Sequence[TaskScore]) -> Average:
    """Mean over all tasks; None if one failed, because the mean of the others isn't comparable."""
    missing = [score.title for score in scores if score.value is None]
    reasons = []
    if missing:
        reasons.append(f"{len(missing)} of {len(scores)} tasks failed ({', '.join(missing)}), so there is no average")
    short = [score for score in scores if score.value is not None and score.items < score.total]
    if short:
        counts = ", ".join(f"{score.title} {score.items} of {score.total}" for score in short)
        reasons.append(f"not all items were scored: {counts}")
    partial = f"partial: {'; '.join(reasons)}" if reasons else ""
    values = [score.value for score in scores if score.value is not None]
    if missing or not values:
        return Average(None, None, partial)
    errors = [score.stderr for score in scores]
    spread = None
    if all(error is not None and math.isfinite(error) for error in errors):
        spread = math.sqrt(sum(error**2 for error in errors if error is not None)) / len(errors)
    return Average(sum(values) / len(values), spread, partial)


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
        mean = average(scores)
        table.append(("average", "", "", percent(mean.value), percent(mean.stderr), ""))
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
    """Remarks: incomplete tables, failures with reasons, deviations from the official data."""
    remarks = [average(scores).partial] if scores and average(scores).partial else []
    remarks += [f"{score.title} failed: {score.error}" for score in scores if score.error]
    remarks += [f"{score.title}: {score.remark}" for score in scores if score.remark]
    return remarks
