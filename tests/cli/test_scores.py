"""`darwinlm scores`: saved evaluations side by side, and what keeps them from being compared."""

import math
from pathlib import Path
from typing import Any

import pytest
from tests.tiny.command import Command

from darwinlm.evaluation.harness import TaskScore, as_json
from darwinlm.runtime.artifact import write_json


def score(task: str, value: float | None, items: int = 100, **more: Any) -> TaskScore:
    error = "" if value is not None else "ValueError: no"
    values = {"stderr": 0.03, "metric": "acc", "shots": 0, "total": 100, "title": task.upper(), **more}
    return TaskScore(task, value=value, items=items, error=error, **values)


def saved(path: Path, *scores: TaskScore, texts: tuple[dict[str, Any], ...] = ()) -> Path:
    write_json(path, {"request": {}, "tasks": as_json(scores), "texts": list(texts)})
    return path


def test_difference_of_two_and_its_error(command: Command, tmp_path: Path) -> None:
    texts = ({"source": "a.txt", "perplexity": 12.5, "kl": None, "tokens": 10},)
    one = saved(tmp_path / "dense.json", score("piqa", 0.6), score("sciq", 0.8, stderr=0.04), texts=texts)
    pruned = ({"source": "a.txt", "perplexity": 20.0, "kl": 0.25, "tokens": 10},)
    two = saved(tmp_path / "half.json", score("piqa", 0.55, stderr=0.04), score("sciq", 0.7), texts=pruned)
    ended = command("scores", one, two, "--markdown", tmp_path / "both.md").succeeded()
    page = (tmp_path / "both.md").read_text(encoding="utf-8")
    assert "| PIQA | 0 | 60.00 ± 3.00 | 55.00 ± 4.00 | -5.00 ± 5.00 |" in page
    mean = math.hypot(0.03, 0.04) / 2 * 100
    assert f"| average |  | 70.00 ± {mean:.2f} | 62.50 ± {mean:.2f} | -7.50 ± {mean * math.sqrt(2):.2f} |" in page
    assert "| a.txt | 12.5 | - | 20 | 0.2500 |" in page
    assert "-7.50" in ended.out


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
def test_what_is_not_alike_is_no_difference(other, remark, command, tmp_path):
    one = saved(tmp_path / "a.json", score("piqa", 0.6), score("sciq", 0.8))
    ended = command("scores", one, saved(tmp_path / "b.json", *other), "--markdown", tmp_path / "both.md").succeeded()
    assert remark in ended.out
    page = (tmp_path / "both.md").read_text(encoding="utf-8")
    assert "average |" not in page
    assert next(line for line in page.splitlines() if line.startswith("| PIQA")).endswith("| - |")


def test_partial_results_say_so_and_other_text_is_not_the_same(command: Command, tmp_path: Path) -> None:
    text = {"source": "a.txt", "perplexity": 12.5, "kl": None, "tokens": 10}
    one = saved(tmp_path / "x" / "a.json", score("piqa", 0.6, total=200), texts=(text,))
    two = saved(tmp_path / "y" / "a.json", score("piqa", 0.5, total=200), texts=({**text, "tokens": 20},))
    ended = command("scores", one, two).succeeded()
    assert f"{one}: partial: not all items were scored: PIQA 100 of 200" in ended.out
    assert f"a.txt: not the same predictions: {one} 10, {two} 20" in ended.out


def test_wrong_files(command: Command, tmp_path: Path) -> None:
    one = saved(tmp_path / "a.json", score("piqa", 0.6))
    write_json(tmp_path / "b.json", {"rows": []})
    command("scores", one, tmp_path / "nowhere.json").refused("there is no file", "nowhere.json: give the --out file")
    command("scores", one, tmp_path / "b.json").refused("b.json holds no evaluation")
    command("scores", one, one).refused("a file is named twice")
