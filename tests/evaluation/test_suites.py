"""Suites, local data files, tables of scores, and two models side by side: averages, partial ones, refusals."""

import gzip
import math
from pathlib import Path

import pytest
from tests.tiny.benchmarks import tiny_benchmarks

from darwinlm.evaluation import score_tables as summary
from darwinlm.evaluation.harness import TaskScore, read_local
from darwinlm.evaluation.measures.named import MeasureRequest
from darwinlm.evaluation.suites import KNOWN, SUITES, SuiteTask, check_names, parse_suite
from darwinlm.runtime import tables
from darwinlm.runtime.errors import DataError, RecipeError


def score(task: str, value: float | None, stderr: float | None = 0.02, items: int = 10, total: int = 10) -> TaskScore:
    error = "ValueError: broken" if value is None else ""
    return TaskScore(task, task.upper(), 0, "acc", value, stderr, items, total, error=error)


def test_unknown_measure() -> None:
    with pytest.raises(RecipeError, match=r"--measure: there is no task 'xyzzy': give a task .*, a file of questions"):
        check_names([SuiteTask("xyzzy")], KNOWN, "--measure")


def test_paper_suite_has_the_papers_shots() -> None:
    without = dict.fromkeys(("sciq", "piqa", "arc_easy", "logiqa", "boolq"), 0)
    some = {"winogrande": 5, "arc_challenge": 25, "hellaswag": 10, "mmlu": 5}
    assert {task.name: task.shots for task in SUITES["paper"]} == without | some


def test_tasks_and_shots_are_read() -> None:
    assert parse_suite(" piqa, arc_challenge:25 ") == (SuiteTask("piqa"), SuiteTask("arc_challenge", 25))


QUICK = ["arc_easy:0", "piqa:0", "hellaswag:0", "sciq:0", "winogrande:0", "boolq:0"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("quick,sciq", QUICK),
        ("quick, quick,piqa:0", QUICK),
        ("sciq,quick", ["sciq:0", *(name for name in QUICK if name != "sciq:0")]),
        ("quick,logiqa", [*QUICK, "logiqa"]),
    ],
)
def test_a_task_of_a_suite_runs_once(text: str, names: list[str]) -> None:
    assert [measure.name for measure in MeasureRequest(tuple(text.split(","))).open()] == names
    assert list(parse_suite(text)) == [task for name in names for task in parse_suite(name)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quick,piqa:5", r"names piqa twice"),
        ("piqa:few", r"'piqa:few' should be TASK or TASK:SHOTS"),
        ("piqa,sciq,piqa", r"names piqa twice"),
        (" , ", r"--suite is empty: give paper or quick"),
    ],
)
def test_wrong_suite(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_suite(text)


@pytest.mark.parametrize(("name", "message"), [("pica", "did you mean 'piqa'"), ("xyzzy", "give paper or quick")])
def test_unknown_task(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"there is no task '{name}': {message}"):
        check_names([SuiteTask(name)], KNOWN)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"goal": "a", "sol1": "b"}\n',
            r"line 1: the task reads goal, .*, label, but the row has no sol2, label, only goal",
        ),
        (b"\n{goal\n", r"line 2: this isn't JSON"),
        (b"[1]\n", r"record 1: .*, not a record"),
        (b"\n", r"is empty"),
        (gzip.compress(b"some text", mtime=0)[:-6], r"validation\.jsonl\.gz: the file can't be read as UTF-8 text"),
    ],
)
def test_wrong_rows(content: bytes, message: str, tmp_path: Path) -> None:
    path = tiny_benchmarks(tmp_path) / "piqa" / "validation.jsonl"
    path.unlink()
    path = path.with_suffix(".jsonl.gz") if content.startswith(b"\x1f\x8b") else path
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_local(tmp_path, SuiteTask("piqa", 0))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (SuiteTask("piqa", 31), r"train\.jsonl: 'piqa' draws 31 examples from more rows than these 30"),
        (SuiteTask("sciq", 2), r"sciq holds no train\.jsonl or train\.jsonl\.gz, which the task 'sciq' needs"),
        (SuiteTask("boolq", 2), r"boolq holds no train\.jsonl or train\.jsonl\.gz, which the task 'boolq' needs"),
    ],
)
def test_too_few_examples(task: SuiteTask, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_local(tiny_benchmarks(tmp_path), task)


def test_missing_file_folder_and_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sciq holds no test\.jsonl or test\.jsonl\.gz"):
        read_local(tmp_path, SuiteTask("sciq", 0))
    with pytest.raises(RecipeError, match=r"there is no such folder"):
        read_local(tmp_path / "nowhere", SuiteTask("sciq", 0))
    with pytest.raises(RecipeError, match=r"no layout for the task 'gsm8k'; known are sciq, "):
        read_local(tmp_path, SuiteTask("gsm8k", 0))


def test_average_is_the_plain_mean_with_its_error() -> None:
    mean = summary.average([score("a", 0.4, 0.03), score("b", 0.6, 0.04)])
    assert mean == (pytest.approx(0.5), pytest.approx(math.hypot(0.03, 0.04) / 2))
    assert summary.average([score("a", 0.4, None), score("b", 0.6)]) == (pytest.approx(0.5), None)


def test_no_average_over_failed_tasks_and_a_count_of_some_items() -> None:
    scores = [score("a", 0.4), score("b", None)]
    assert summary.average(scores) == (None, None)
    assert summary.rows(scores)[-1] == ("average", "", "", "-", "-", "")
    assert summary.notes(scores) == ["B failed: ValueError: broken"]
    text = tables.markdown(tables.Table(summary.HEADINGS, summary.rows([score("a", 0.4, items=5)])))
    assert "| A | 0 | acc | 40.00 | 2.00 | 5 of 10 |" in text


def test_names_in_markdown_are_neither_html_nor_cells():
    evil = "a|b <script>alert(1)</script>\x1b[2J\n| c"
    text = tables.markdown(tables.Table(["text", "KL"], [[evil, "0.1"]], [evil], final=True))
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "**0.1**" in text
    assert [line.replace("\\|", "").count("|") for line in text.splitlines()[:3]] == [3, 3, 3]
