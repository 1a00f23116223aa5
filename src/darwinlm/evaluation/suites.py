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
class Known:
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
    "sciq": Known(
        "SciQ",
        "acc",
        "test",
        "train",
        ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"),
    ),
    "piqa": Known("PIQA", "acc", "validation", "train", ("goal", "sol1", "sol2", "label")),
    "arc_easy": Known("ARC-E", "acc", "test", "train", ("question", "choices", "answerKey")),
    "arc_challenge": Known("ARC-C", "acc_norm", "test", "train", ("question", "choices", "answerKey")),
    "logiqa": Known("LogiQA", "acc_norm", "test", "train", ("context", "question", "options", "label")),
    "boolq": Known("BoolQ", "acc", "validation", "train", ("passage", "question", "label")),
    "winogrande": Known("WinoGrande", "acc", "validation", "train", ("sentence", "option1", "option2", "answer")),
    "hellaswag": Known(
        "HellaSwag", "acc_norm", "validation", "train", ("activity_label", "ctx_a", "ctx_b", "endings", "label")
    ),
    "mmlu": Known("MMLU", "acc", "test", "dev", ("question", "subject", "choices", "answer"), by_subject=True),
}
"""Tasks by their names in the harness; the fields are those that the task reads."""


@dataclass(frozen=True)
class Wanted:
    """One task of a suite; without a number of `shots`, those of the harness's configuration."""

    task: str
    shots: int | None = None

    @property
    def title(self) -> str:
        """Name for tables: `ARC-C (25)`."""
        name = KNOWN[self.task].title if self.task in KNOWN else self.task
        return f"{name} ({self.shots})" if self.shots else name


SUITES: dict[str, tuple[Wanted, ...]] = {
    "paper": (
        Wanted("sciq", 0),
        Wanted("piqa", 0),
        Wanted("winogrande", 5),
        Wanted("arc_easy", 0),
        Wanted("arc_challenge", 25),
        Wanted("hellaswag", 10),
        Wanted("logiqa", 0),
        Wanted("boolq", 0),
        Wanted("mmlu", 5),
    ),
    "quick": tuple(Wanted(task, 0) for task in ("arc_easy", "piqa", "hellaswag", "sciq", "winogrande", "boolq")),
}


def parse_suite(text: str) -> tuple[Wanted, ...]:
    """Read the name of a suite, or tasks: `piqa,arc_challenge:25`; names are checked later. Raises RecipeError."""
    if text in SUITES:
        return SUITES[text]
    wanted: list[Wanted] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        task, _, shots = item.partition(":")
        if shots and not shots.isdigit():
            raise RecipeError(f"--suite: '{item}' should be TASK or TASK:SHOTS, such as arc_challenge:25")
        wanted.append(Wanted(task, int(shots) if shots else None))
    names = [one.task for one in wanted]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise RecipeError(f"--suite names {', '.join(sorted(twice))} twice")
    if not wanted:
        raise RecipeError(f"--suite is empty: give {' or '.join(SUITES)}, or tasks such as piqa,arc_challenge:25")
    return tuple(wanted)


def check_names(wanted: Sequence[Wanted], known: Collection[str]) -> None:
    """Refuse unknown tasks, and suggest a similar name. Raises RecipeError."""
    for one in wanted:
        if one.task not in known:
            otherwise = f"give {' or '.join(SUITES)}, or the harness's task names"
            hint = suggestion(one.task, [*known, *SUITES], otherwise)
            raise RecipeError(f"--suite: there is no task '{one.task}': {hint}")
