"""Likelihood of the right answers of multiple-choice items, which is less noisy than accuracy for small models.

The figures are bits per byte of the right answer and its log-probability among the choices. "Signal and Noise" (arXiv
2508.13144) and DataDecide (arXiv 2504.11393) find them more informative than accuracy for small models.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from scipy.special import log_softmax


def right_answers(samples: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the items that have one right answer among several, by name; empty if there are none.

    `bits` are bits per byte of the right answer, given its prompt; lower is better. `log_p` is the natural logarithm of
    its probability among the choices; higher is better, and a model without preference among n choices has -log n.
    `bits_stderr` and `log_p_stderr` are their standard errors; None for a single item.

    The harness's samples hold `arguments` (context and answer of each choice), `filtered_resps` (log-probability of
    each) and `target` (number or text of the right one).
    """
    items = [one for one in map(_of_item, samples) if one is not None]
    figures: dict[str, float | None] = {}
    for at, name in enumerate(("bits", "log_p") if items else ()):
        values = [item[at] for item in items]
        figures[name] = statistics.fmean(values)
        figures[f"{name}_stderr"] = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return figures


def _of_item(sample: Mapping[str, Any]) -> tuple[float, float] | None:
    answers = [arguments[1] for arguments in sample["arguments"] if len(arguments) == 2]
    given = sample["filtered_resps"]
    if len(answers) < 2 or len(given) != len(answers) or not all(isinstance(answer, str) for answer in answers):
        return None
    if not all(isinstance(one, tuple | list) and isinstance(one[0], float) for one in given):
        return None
    right = _place(sample["target"], answers)
    if right is None or not answers[right]:
        return None
    log_ps = [float(one[0]) for one in given]
    return -log_ps[right] / math.log(2) / len(answers[right].encode()), float(log_softmax(log_ps)[right])


def _place(target: object, answers: list[str]) -> int | None:
    """Index of the right answer; None if the target isn't one of the answers."""
    if isinstance(target, str):
        named = [place for place, answer in enumerate(answers) if answer.strip() == target.strip()]
        if len(named) == 1:
            return named[0]
        target = int(target) if target.isdigit() else None
    return target if isinstance(target, int) and 0 <= target < len(answers) else None
