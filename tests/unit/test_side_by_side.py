"""Benchmark scores of models side by side, and what keeps them from being compared."""

import math
from typing import Any

import pytest

from darwinlm.evaluation.harness import TaskScore
from darwinlm.evaluation.side_by_side import task_table


def score(task: str, value: float | None, items: int = 100, **more: Any) -> TaskScore:
    error = "" if value is not None else "ValueError: no"
    values = {"stderr": 0.03, "metric": "acc", "shots": 0, "total": 100, "title": task.upper(), **more}
    return TaskScore(task, value=value, items=items, error=error, **values)


def test_difference_of_two_and_its_error() -> None:
    one = [score("piqa", 0.6), score("sciq", 0.8, stderr=0.04)]
    two = [score("piqa", 0.55, stderr=0.04), score("sciq", 0.7)]
    headings, rows, remarks = task_table({"dense": one, "half": two})
    assert headings == ("task", "shots", "dense, %", "half, %", "difference")
    assert rows[0] == ("PIQA", "0", "60.00 ± 3.00", "55.00 ± 4.00", "-5.00 ± 5.00")
    mean = math.hypot(0.03, 0.04) / 2 * 100
    spread = f"-7.50 ± {mean * math.sqrt(2):.2f}"
    assert rows[-1] == ("average", "", f"70.00 ± {mean:.2f}", f"62.50 ± {mean:.2f}", spread)
    assert remarks == []


@pytest.mark.parametrize(
    ("other", "remark"),
    [
        ([score("piqa", 0.5, items=50), score("sciq", 0.7)], "PIQA: measured differently: a 100 items, 0 shots, acc; "),
        (
            [score("piqa", 0.5, shots=5), score("sciq", 0.7)],
            "PIQA: measured differently: a 100 items, 0 shots, acc; b 100 items, 5",
        ),
        ([score("sciq", 0.7)], "PIQA: not scored in b"),
        ([score("piqa", None), score("sciq", 0.7)], "PIQA: failed in one of them"),
    ],
)
def test_what_is_not_alike_is_no_difference(other: list[TaskScore], remark: str) -> None:
    _, rows, remarks = task_table({"a": [score("piqa", 0.6), score("sciq", 0.8)], "b": other})
    assert any(each.startswith(remark) for each in remarks)
    assert "average" not in [row[0] for row in rows]
    assert next(row for row in rows if row[0] == "PIQA")[-1] == "-"


def test_partial_results_say_so() -> None:
    _, _, remarks = task_table({"a": [score("piqa", 0.6, total=200)], "b": [score("piqa", 0.5, total=200)]})
    assert "a: partial: not all items were scored: PIQA 100 of 200" in remarks
