"""Benchmark tasks through EleutherAI's lm-evaluation-harness; its tasks, prompts and metrics, unchanged.

Local data only replaces the source of a task's rows; the task's own `doc_to_*` fields format the prompts.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from darwinlm.evaluation.choices import right_answers
from darwinlm.evaluation.local_data import Rows, read_task
from darwinlm.evaluation.suites import KNOWN, Wanted, check_names
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import validated
from darwinlm.runtime.errors import MissingExtraError, first_line

LOCAL_MMLU = "mmlu_local"
HOMES = ("sciq", "piqa", "arc", "logiqa", "super_glue/boolq", "winogrande", "hellaswag", "mmlu/default")
"""Folders of the known tasks inside the harness."""


@dataclass
class TaskScore:
    """Result of one task.

    Attributes:
        bits, bits_stderr, log_p, log_p_stderr: As from `right_answers`; None if the items have no choices.
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

    bits: float | None = field(default=None, kw_only=True)
    bits_stderr: float | None = field(default=None, kw_only=True)
    log_p: float | None = field(default=None, kw_only=True)
    log_p_stderr: float | None = field(default=None, kw_only=True)
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
    model: Any,
    tokenizer: Any,
    wanted: Sequence[Wanted],
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    done: Mapping[str, TaskScore] | None = None,
    save: Callable[[list[TaskScore]], None] = lambda scores: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[TaskScore]:
    """Evaluate tasks in turn, each in all processes; a failure is recorded, and the other tasks continue.

    `limit` is the number of items of each task, spread over the tasks of a group such as MMLU; None scores all. Scores
    in `done` without an error are kept. `save` gets all scores so far, after each task. Raises as `check_suite`.
    """
    manager, local = check_suite(wanted, data_dir)
    from darwinlm.evaluation.shared_context import QuietLM, SharedContextLM

    # On a CPU, answers share the forward pass of their context; llama.cpp remembers it by itself.
    wrapper = SharedContextLM if model.device.type == "cpu" and getattr(model.config, "use_cache", True) else QuietLM
    lm = wrapper(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    scores: list[TaskScore] = []
    for number, one in enumerate(wanted):
        before = (done or {}).get(one.task)
        if before is not None and not before.error and one.shots in (None, before.shots):
            scores.append(before)
        else:
            rows, remark = local.get(one.task, (None, ""))
            scores.append(parallel.broadcast(_score(lm, manager, one, rows, remark, limit)))
        save(scores)
        progress(number + 1, len(wanted))
    return scores


@contextmanager
def _no_machine_report() -> Iterator[None]:
    """Stop the harness from running programs (git, pip, lscpu) to describe the machine."""
    from lm_eval import evaluator

    replaced: dict[str, Callable[..., None]] = {"add_env_info": lambda _: None, "get_git_commit_hash": lambda: None}
    before = {name: getattr(evaluator, name) for name in replaced if hasattr(evaluator, name)}
    for name in before:
        setattr(evaluator, name, replaced[name])
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(evaluator, name, function)


def check_suite(wanted: Sequence[Wanted], data_dir: Path | None) -> tuple[Any, dict[str, Any]]:
    """The harness's index of tasks, and their local rows; run before a model is loaded.

    Raises MissingExtraError, RecipeError if the harness doesn't know a task, or DataError if a local file is wrong.
    """
    _require_harness()
    manager = _manager(all(one.task in KNOWN for one in wanted))
    check_names(wanted, manager.task_index)
    return manager, {} if data_dir is None else {one.task: read_task(data_dir, one) for one in wanted}


def _require_harness() -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("lm-eval", "eval", "a benchmark suite") from error
    from datasets import disable_progress_bars

    disable_progress_bars()
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)


@cache
def _manager(only_known: bool) -> Any:
    """The harness's index of tasks; indexing all of its files takes ten seconds, so known tasks are indexed alone."""
    import lm_eval.tasks as home

    folder = Path(home.__file__).parent
    if not only_known:
        return home.TaskManager()
    return home.TaskManager(include_path=[str(folder / name) for name in HOMES], include_defaults=False)


def _score(
    lm: Any, manager: Any, one: Wanted, rows: dict[str, Rows] | None, remark: str, limit: int | None
) -> TaskScore:
    from datasets.exceptions import DatasetsError
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate

    score = TaskScore(one.task, one.title, one.shots, remark=remark)
    try:
        task = _task(manager, one, rows)
        share = limit
        if limit is not None and hasattr(task, "get_all_tasks"):
            share = -(-limit // len(task.get_all_tasks()))
        with _no_machine_report():
            results = simple_evaluate(
                lm, tasks=[task], limit=share, task_manager=manager, log_samples=True, bootstrap_iters=1000
            )
    except (
        ValueError,
        RuntimeError,
        LookupError,
        TypeError,
        AttributeError,
        AssertionError,
        OSError,
        DatasetsError,
        TemplateError,
    ) as error:
        reason = first_line(error)
        score.error = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        return score
    if results is not None:  # the harness gives results to the first process only
        _read_result(score, results, getattr(task, "name", one.task))
    return score


def _task(manager: Any, one: Wanted, rows: dict[str, Rows] | None) -> Any:
    """The harness's task or group, with the requested shots and rows."""
    shots = {} if one.shots is None else {"num_fewshot": one.shots}
    if rows is None:
        return _built(manager, one.task, shots)
    known = KNOWN[one.task]
    pool = next((split for split in rows if split != known.split), None)
    if not known.by_subject:
        # Splits without local rows are removed; without shots, no examples are drawn.
        splits = {
            "training_split": pool,
            "validation_split": known.split if known.split == "validation" else None,
            "test_split": known.split if known.split == "test" else None,
        }
        return _built(manager, one.task, {**shots, **splits, "custom_dataset": _dataset(rows)})
    from lm_eval.api.group import AggMetricConfig, Group

    group = Group(LOCAL_MMLU, aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)])
    for subject in sorted({str(row["subject"]) for row in rows[known.split]}):
        of_subject = {split: [row for row in part if row["subject"] == subject] for split, part in rows.items()}
        changes: dict[str, Any] = {**shots, "custom_dataset": _dataset(of_subject)}
        if pool is None:
            changes |= {"fewshot_split": None, "fewshot_config": None}
        group.add(_built(manager, f"{one.task}_{subject}", changes))
    return group


def _built(manager: Any, name: str, changes: dict[str, Any]) -> Any:
    # `TaskManager.load` accepts a changed task only inside a group; this is the function that it calls there.
    return manager._factory.build(manager.task_index[name], overrides=changes, registry=manager.task_index)


def _dataset(rows: dict[str, Rows]) -> Callable[..., Any]:
    def load(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({split: Dataset.from_list(part) for split, part in rows.items()})

    return load


def _read_result(score: TaskScore, results: Any, name: str) -> None:
    table = results["results"]
    metrics = table.get(name) or (results.get("groups") or {}).get(name) or next(iter(table.values()))
    score.metrics = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
    wanted = KNOWN[score.task].metric if score.task in KNOWN else None
    names = [key for key in score.metrics if "_stderr," not in key and "," in key]
    chosen = next((key for key in names if key.partition(",")[0] == wanted), names[0] if names else None)
    if chosen is None:
        score.error = "the harness reported no metric"
        return
    metric, _, filtered = chosen.partition(",")
    score.metric, score.value = metric, score.metrics[chosen]
    score.stderr = score.metrics.get(f"{metric}_stderr,{filtered}")
    vars(score).update(right_answers(chain.from_iterable(results["samples"].values())))
    counts = results["n-samples"].values()
    score.items = sum(int(count["effective"]) for count in counts)
    score.total = sum(int(count["original"]) for count in counts)
    if score.shots is None:
        score.shots = next((int(shots) for shots in results.get("n-shot", {}).values()), None)


def as_json(scores: Sequence[TaskScore]) -> list[dict[str, Any]]:
    """Scores as plain values."""
    return [asdict(score) for score in scores]


def from_json(path: Path, rows: object) -> dict[str, TaskScore]:
    """Scores by task, from the result of `as_json` in a file. Raises ArtifactError if it is something else."""
    return {score.task: score for score in validated(path, list[TaskScore], rows)}
