"""Benchmark scores of two models on the same items, and what keeps them from being compared."""

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest

from darwinlm.evaluation.harness import TaskScore
from darwinlm.evaluation.summary import side_by_side


def score(task: str, right: str, **more: Any) -> TaskScore:
    values = [int(one) for one in right]
    error = statistics.stdev(values) / math.sqrt(len(values))
    given = {"value": statistics.fmean(values), "stderr": error, "metric": "acc", "shots": 0, "title": task.upper()}
    return TaskScore(task, items=len(right), total=100, right=right, **(given | more))


def failed(task: str) -> TaskScore:
    return TaskScore(task, task.upper(), 0, error="ValueError: no")


def test_differences_are_paired() -> None:
    dense, small = ("1101101111", "1101001111"), ("0111100000", "1111000000")
    ones, twos = ([score("piqa", each[0]), score("sciq", each[1])] for each in (dense, small))
    headings, rows, remarks = side_by_side(ones, twos)
    assert headings == ("task", "shots", "dense, %", "this model, %", "difference")
    assert remarks == []
    changes = [[int(b) - int(a) for a, b in zip(*pair, strict=True)] for pair in zip(dense, small, strict=True)]
    errors = [statistics.stdev(each) / math.sqrt(10) for each in changes]
    assert rows[0][:2] == ("PIQA", "0")
    assert rows[0][2].startswith("80.00 ± ")
    assert [row[-1] for row in rows] == [
        f"-40.00 ± {100 * errors[0]:.2f}",
        f"-30.00 ± {100 * errors[1]:.2f}",
        f"-35.00 ± {100 * math.hypot(*errors) / 2:.2f}",
    ]
    assert rows[-1][0] == "average"


def test_equal_answers_differ_by_nothing_for_sure() -> None:
    _, rows, _ = side_by_side([score("piqa", "110100")], [score("piqa", "110100")])
    assert rows[0][-1] == "+0.00 ± 0.00"
    assert len(rows) == 1, "one task has no average"


@pytest.mark.parametrize(
    "other",
    [
        [score("piqa", "101"), score("sciq", "1101")],
        [score("piqa", "1101", shots=5), score("sciq", "1101")],
        [score("piqa", "1101", metric="acc_norm"), score("sciq", "1101")],
        [replace(score("piqa", "1101"), right=""), score("sciq", "1101")],
        [score("sciq", "1101")],
        [failed("piqa"), score("sciq", "1101")],
    ],
    ids=["items", "shots", "metric", "no items kept", "missing", "failed"],
)
def test_what_is_not_alike_is_no_difference(other: list[TaskScore]) -> None:
    _, rows, remarks = side_by_side([score("piqa", "1001"), score("sciq", "1001")], other)
    assert remarks == ["PIQA: no difference, because both models were not measured on the same items"]
    assert [row[0] for row in rows] == ["PIQA", "SCIQ"]
    assert rows[0][-1] == "-"
    assert rows[1][-1] != "-"
