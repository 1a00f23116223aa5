"""The benchmark suites: tasks, metrics for tables, and the layout of local data files.

The paper (arXiv 2502.07780, section 4) reports SciQ, PIQA, WinoGrande (5 shots), ARC-Easy, ARC-Challenge (25),
HellaSwag (10), LogiQA, BoolQ and MMLU (5), the others without shots, and their mean. It doesn't name the metrics. Those
below reproduce its dense Llama-2-7B row; they are also Sheared-LLaMA's (arXiv 2310.06694).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.limits import suggestion


@dataclass(frozen=True)
class KnownTask:
    """A task with a known layout of data files.

    Attributes:
        pool: Split from which examples are drawn.
        fields: Fields that every row of a file must have.
        by_subject: Whether the file joins the harness's subtasks, identified by the field `subject`.
    """

    title: str
    metric: str
    split: str
    pool: str
    fields: tuple[str, ...]
    by_subject: bool = False


KNOWN = {
    "sciq": KnownTask(
        "SciQ",
        "acc",
        "test",
        "train",
        ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"),
    ),
    "piqa": KnownTask("PIQA", "acc", "validation", "train", ("goal", "sol1", "sol2", "label")),
    "arc_easy": KnownTask("ARC-E", "acc", "test", "train", ("question", "choices", "answerKey")),
    "arc_challenge": KnownTask("ARC-C", "acc_norm", "test", "train", ("question", "choices", "answerKey")),
    "logiqa": KnownTask("LogiQA", "acc_norm", "test", "train", ("context", "question", "options", "label")),
    "boolq": KnownTask("BoolQ", "acc", "validation", "train", ("passage", "question", "label")),
    "winogrande": KnownTask("WinoGrande", "acc", "validation", "train", ("sentence", "option1", "option2", "answer")),
    "hellaswag": KnownTask(
        "HellaSwag", "acc_norm", "validation", "train", ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    ),
    "mmlu": KnownTask("MMLU", "acc", "test", "dev", ("question", "subject", "choices", "answer"), by_subject=True),
}
"""Tasks by their names in the harness; the fields are those that the task reads."""


@dataclass(frozen=True)
class SuiteTask:
    """A task of a suite by its name in the harness; without `shots`, the harness's configuration sets their number."""

    name: str
    shots: int | None = None

    @property
    def title(self) -> str:
        """Name for tables: `ARC-C (25)`."""
        title = KNOWN[self.name].title if self.name in KNOWN else self.name
        return f"{title} ({self.shots})" if self.shots else title


SUITES: dict[str, tuple[SuiteTask, ...]] = {
    "paper": (
        SuiteTask("sciq", 0),
        SuiteTask("piqa", 0),
        SuiteTask("winogrande", 5),
        SuiteTask("arc_easy", 0),
        SuiteTask("arc_challenge", 25),
        SuiteTask("hellaswag", 10),
        SuiteTask("logiqa", 0),
        SuiteTask("boolq", 0),
        SuiteTask("mmlu", 5),
    ),
    "quick": tuple(SuiteTask(name, 0) for name in ("arc_easy", "piqa", "hellaswag", "sciq", "winogrande", "boolq")),
}


def listed(text: str) -> list[str]:
    """The names in `quick,piqa:5,answers.jsonl` one by one; suites become their tasks.

    A task of a suite is listed once, even if it is also named by itself, without shots or with the suite's.
    """
    names = [name for name in (part.strip() for part in text.split(",")) if name]
    of_suites = {task.name: f"{task.name}:{task.shots}" for name in names for task in SUITES.get(name, ())}
    found: list[str] = []
    for name in names:
        spelled = of_suites.get(name, name)
        tasks = [f"{task.name}:{task.shots}" for task in SUITES[name]] if name in SUITES else [spelled]
        found += [task for task in tasks if task not in found or task not in of_suites.values()]
    return found


def parse_suite(text: str, *, option: str = "--suite") -> tuple[SuiteTask, ...]:
    """Read suites and tasks: `quick` or `piqa,arc_challenge:25`; names are checked later. Raises RecipeError."""
    tasks: list[SuiteTask] = []
    for item in listed(text):
        name, _, shots = item.partition(":")
        if shots and not shots.isdigit():
            raise RecipeError(f"{option}: '{item}' should be TASK or TASK:SHOTS, such as arc_challenge:25")
        tasks.append(SuiteTask(name, int(shots) if shots else None))
    names = [task.name for task in tasks]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise RecipeError(f"{option} names {', '.join(sorted(twice))} twice")
    if not tasks:
        raise RecipeError(f"{option} is empty: give {' or '.join(SUITES)}, or tasks such as piqa,arc_challenge:25")
    return tuple(tasks)


def check_names(tasks: Sequence[SuiteTask], harness_tasks: Collection[str], option: str = "--suite") -> None:
    """Refuse unknown tasks, and suggest a similar name. Raises RecipeError."""
    for task in tasks:
        if task.name not in harness_tasks:
            otherwise = f"give {' or '.join(SUITES)}, or the harness's task names"
            if option == "--measure":
                otherwise = "give a task of the harness, a file of questions such as answers.jsonl, or check.py:score"
            hint = suggestion(task.name, [*harness_tasks, *SUITES], otherwise)
            raise RecipeError(f"{option}: there is no task '{task.name}': {hint}")
