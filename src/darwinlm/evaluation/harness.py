"""Benchmark tasks through EleutherAI's lm-evaluation-harness; its tasks, prompts, model and metrics, unchanged.

Local data only replaces the source of a known task's rows: `DIR/TASK/SPLIT.jsonl` or `.jsonl.gz`, where a suffix after
the split is allowed (`train_1996.jsonl.gz`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.evaluation.suites import KNOWN, SuiteTask, check_names
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import validated
from darwinlm.runtime.errors import DataError, RecipeError, first_line, missing_extra
from darwinlm.runtime.json_values import JsonObject
from darwinlm.steps.text.local_files import json_records

if TYPE_CHECKING:
    from datasets import DatasetDict
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HOMES = ("sciq", "piqa", "arc", "logiqa", "super_glue/boolq", "winogrande", "hellaswag", "mmlu/default")
"""Folders of the known tasks inside the harness."""

LOCAL = "local"
"""Name of a group of tasks on local rows."""

Rows = list[JsonObject]

TokenRequest = tuple[tuple[str, str], list[int], list[int]]
"""What the harness asks of a model: context and continuation as text, and the token ids of both."""
Answers = list[tuple[float, bool]]
"""Log-likelihood of each continuation in nats, and whether it is the model's most likely one."""


@dataclass
class TaskScore:
    """Result of one task.

    Attributes:
        task: Name in the harness.
        shots: Number of examples in the prompt.
        value: Score between 0 and 1; None if the task failed.
        stderr: Standard error of `value`; None if the harness gives none.
        items: Number of scored items.
        total: Number of items of the task.
        metrics: All figures of the harness, by `metric,filter`.
        remark: Difference from the official data.
        error: Reason of a failure; empty on success.
    """

    task: str
    title: str
    shots: int | None
    metric: str = ""
    value: float | None = None
    stderr: float | None = None
    items: int = 0
    total: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    remark: str = ""
    error: str = ""


def run_suite(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[SuiteTask],
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    finished: Mapping[str, TaskScore] | None = None,
    save: Callable[[list[TaskScore]], None] = lambda scores: None,
    progress: Callable[[int, int], None] = lambda completed, total: None,
) -> list[TaskScore]:
    """Evaluate tasks one after the other, each in all processes; a failure is recorded, and the other tasks continue.

    `limit` is the number of items of each task, spread over the tasks of a group such as MMLU; None scores all. Scores
    in `finished` without an error are kept. `save` gets all scores so far, after each task. Raises as `check_suite`.
    """
    check_suite(tasks, data_dir)
    lm = harness_model(model, tokenizer, batch_size)
    scores: list[TaskScore] = []
    for number, task in enumerate(tasks):
        score = (finished or {}).get(task.name)
        if score is not None and not score.error and task.shots in (None, score.shots):
            scores.append(score)
        else:
            scores.append(parallel.broadcast(_score(lm, task, data_dir, limit)))
        save(scores)
        progress(number + 1, len(tasks))
    return scores


def check_suite(tasks: Sequence[SuiteTask], data_dir: Path | None, *, option: str = "--suite") -> None:
    """Check the names of tasks, and their local files; run before a model is loaded.

    Raises MissingExtraError, RecipeError if the harness doesn't know a task or a task has no layout of local files, or
    DataError if such a file is missing or wrong.
    """
    _require_harness()
    check_names(tasks, _manager(all(task.name in KNOWN for task in tasks)).task_index, option)
    if data_dir is not None:
        for task in tasks:
            read_local(data_dir, task)


def runs_code(task: SuiteTask) -> bool:
    """Whether a task, or one of its group, runs code that a model writes; nothing of it is loaded or run."""
    if task.name in KNOWN:
        return False
    index, waiting, seen = _manager(False).task_index, [task.name], set[str]()
    while waiting:
        name = waiting.pop()
        entry = index.get(name)
        if entry is None or name in seen:
            continue
        seen.add(name)
        settings = entry.cfg or {}
        if settings.get("unsafe_code"):
            return True
        members = settings.get("task")
        waiting += [str(each.get("task", "")) if isinstance(each, dict) else str(each) for each in _listed(members)]
        waiting += [other for other, each in index.items() if name in each.tags]
    return False


def _listed(members: object) -> list[object]:
    return members if isinstance(members, list) else []


def _require_harness() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise missing_extra("lm-eval", "eval", "a benchmark suite") from error
    from datasets import disable_progress_bars

    disable_progress_bars()
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


@cache
def _manager(only_known: bool) -> TaskManager:
    """The harness's index of tasks; indexing all of its files takes ten seconds, so known tasks are indexed alone."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent
    if not only_known:
        return lm_eval.tasks.TaskManager()
    return lm_eval.tasks.TaskManager(include_path=[str(folder / name) for name in HOMES], include_defaults=False)


def harness_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> HFLM:
    """The harness's wrapper of a model, without progress bars.

    Processes share the requests of a task. The harness would share its items, and then draw other examples.
    """
    from lm_eval.models.huggingface import HFLM

    class Shared(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> Answers:
            answers: Answers = super().loglikelihood(requests, disable_tqdm=True)
            return answers

        def _loglikelihood_tokens(
            self, requests: list[TokenRequest], disable_tqdm: bool = True, override_bs: int | None = None
        ) -> Answers:
            answers: Answers = super()._loglikelihood_tokens(parallel.portion(requests), True, override_bs)
            return [*chain.from_iterable(parallel.gather(answers))]

    return Shared(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)


def load_task(task: SuiteTask, data_dir: Path | None) -> tuple[JsonObject, str]:
    """The harness's tasks of a name, with their examples drawn as by `lm_eval`, and a remark as in `read_local`."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    remark = ""
    if data_dir is None:
        loaded = _manager(task.name in KNOWN).load(task.name)
    else:
        rows, remark = read_local(data_dir, task)
        loaded = _local_tasks(task, rows)
    for loaded_task in loaded["tasks"].values():
        if task.shots is not None or loaded_task.get_config("num_fewshot") is None:
            loaded_task.set_config("num_fewshot", task.shots or 0)
        loaded_task.set_fewshot_seed(DEFAULT_OTHER_SEED)
    return loaded, remark


def items_of_each(limit: int | None, loaded: JsonObject) -> int | None:
    """Number of items of each task of a group, so that it has at least `limit` items in all; None takes all."""
    return None if limit is None else -(-limit // len(loaded["tasks"]))


def _score(lm: HFLM, task: SuiteTask, data_dir: Path | None, limit: int | None) -> TaskScore:
    from lm_eval import evaluate

    score = TaskScore(task.name, task.title, task.shots)
    try:
        loaded, score.remark = load_task(task, data_dir)
        share = items_of_each(limit, loaded)
        # `simple_evaluate` also describes the machine, for which it runs git, pip and lscpu.
        results = evaluate(lm, loaded, limit=share, bootstrap_iters=1000)
    except Exception as error:  # tasks are other people's code
        if parallel.size() > 1:  # the others may be waiting for this process, so all of them end
            raise
        reason = first_line(error)
        score.error = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        return score
    _read_result(score, results)
    return score


def read_local(folder: Path, task: SuiteTask) -> tuple[dict[str, Rows], str]:
    """Local rows of a task by split: those that are scored and, if the task has examples in its prompt, their pool.

    Returns the rows, and a remark if the examples come from another split than usual, else an empty one. Raises
    RecipeError if the task has no layout of local files or the folder is missing, DataError if a file is missing or
    wrong.
    """
    if task.name not in KNOWN:
        raise RecipeError(
            f"--data-dir has no layout for the task '{task.name}'; known are {', '.join(KNOWN)}. Leave --data-dir "
            "out to let the harness fetch its own data"
        )
    if not folder.is_dir():
        raise RecipeError(f"--data-dir {folder}: there is no such folder")
    layout = KNOWN[task.name]
    splits = (layout.split, layout.pool) if task.shots or layout.by_subject else (layout.split,)
    files = {split: _local_file(folder / task.name, split) for split in splits}
    rows = {split: _rows(path, layout.fields) for split, path in files.items()}
    pool = files.get(layout.pool)
    if pool is None:
        return rows, ""
    if len(rows[layout.pool]) <= (task.shots or 0):
        raise DataError(
            f"{pool}: '{task.name}' draws {task.shots} examples from more rows than these {len(rows[layout.pool])}"
        )
    return rows, "" if pool.name.split(".")[0] == layout.pool else f"examples from {pool.name}"


def _local_file(folder: Path, split: str) -> Path:
    names = [f"{split}{middle}.jsonl{end}" for middle in ("", "[._-]*") for end in ("", ".gz")]
    path = next((path for name in names for path in sorted(folder.glob(name))), None)
    if path is None:
        raise DataError(
            f"{folder} holds no {split}.jsonl or {split}.jsonl.gz, which the task '{folder.name}' needs: put it there, "
            "or leave --data-dir out to let the harness fetch its own data"
        )
    return path


def _rows(path: Path, fields: Sequence[str]) -> Rows:
    rows = []
    for place, row in json_records(path):
        if absent := [name for name in fields if name not in row]:
            raise DataError(
                f"{place}: the task reads {', '.join(fields)}, but the row has no {', '.join(absent)}, "
                f"only {', '.join(row)}"
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def _local_tasks(task: SuiteTask, rows: dict[str, Rows]) -> JsonObject:
    """The harness's task on local rows; a task for each subject, and their group, if the files join subjects."""
    from datasets import Dataset, DatasetDict
    from lm_eval.config.group import AggMetricConfig

    layout = KNOWN[task.name]

    def source(subject: str | None = None) -> Callable[..., DatasetDict]:
        parts = {
            split: Dataset.from_list([row for row in part if subject in (None, row.get("subject"))])
            for split, part in rows.items()
        }
        return lambda **_: DatasetDict(parts)

    if layout.by_subject:
        subjects = sorted({str(row["subject"]) for row in rows[layout.split]})
        members = [{"task": f"{task.name}_{subject}", "custom_dataset": source(subject)} for subject in subjects]
    else:  # without splits that have no rows
        splits = {f"{split}_split": split if split == layout.split else None for split in ("validation", "test")}
        pool = layout.pool if layout.pool in rows else None
        members = [{"task": task.name, "custom_dataset": source(), "training_split": pool, **splits}]
    loaded: JsonObject = _manager(True).load({"group": LOCAL, "task": members})
    if layout.by_subject:
        loaded["groups"][LOCAL].aggregate_metric_list = [AggMetricConfig(metric=layout.metric, weight_by_size=True)]
    return loaded


def _read_result(score: TaskScore, results: JsonObject) -> None:
    table = results["results"]
    metrics = next(table[name] for name in (score.task, LOCAL, *table) if name in table)
    score.metrics = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
    key = chosen_metric(score.task, [name for name in score.metrics if "_stderr," not in name and "," in name])
    if key is None:
        score.error = "the harness reported no metric"
        return
    score.metric, _, filtered = key.partition(",")
    score.value, score.stderr = score.metrics[key], score.metrics.get(f"{score.metric}_stderr,{filtered}")
    counts = results["n-samples"].values()
    score.items = sum(int(count["effective"]) for count in counts)
    score.total = sum(int(count["original"]) for count in counts)
    if score.shots is None:
        score.shots = next((int(shots) for shots in results.get("n-shot", {}).values()), None)


def chosen_metric(task: str, names: Sequence[str]) -> str | None:
    """The figure of a task for tables, of those named `metric,filter`: the suites' own or the first; None if none."""
    preferred = KNOWN[task].metric if task in KNOWN else None
    return next((name for name in names if name.partition(",")[0] == preferred), names[0] if names else None)


def as_json(scores: Sequence[TaskScore]) -> list[JsonObject]:
    """Scores as plain values."""
    return [asdict(score) for score in scores]


def from_json(path: Path, rows: object) -> dict[str, TaskScore]:
    """Scores by task, from the result of `as_json` in a file. Raises ArtifactError if it is something else."""
    return {score.task: score for score in validated(path, list[TaskScore], rows)}
