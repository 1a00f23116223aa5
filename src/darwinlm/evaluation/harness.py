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
from typing import TYPE_CHECKING, Any

from darwinlm.evaluation.suites import KNOWN, Wanted, check_names
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import validated
from darwinlm.runtime.errors import DataError, RecipeError, first_line, missing_extra
from darwinlm.runtime.json_values import JsonObject
from darwinlm.steps.text.local_files import json_records

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HOMES = ("sciq", "piqa", "arc", "logiqa", "super_glue/boolq", "winogrande", "hellaswag", "mmlu/default")
"""Folders of the known tasks inside the harness."""

LOCAL = "local"
"""Name of a group of tasks on local rows."""

Rows = list[JsonObject]


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
    check_suite(wanted, data_dir)
    lm = _lm(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    scores: list[TaskScore] = []
    for number, one in enumerate(wanted):
        before = (done or {}).get(one.task)
        if before is not None and not before.error and one.shots in (None, before.shots):
            scores.append(before)
        else:
            scores.append(parallel.broadcast(_score(lm, one, data_dir, limit)))
        save(scores)
        progress(number + 1, len(wanted))
    return scores


def check_suite(wanted: Sequence[Wanted], data_dir: Path | None) -> None:
    """Check the names of tasks, and their local files; run before a model is loaded.

    Raises MissingExtraError, RecipeError if the harness doesn't know a task or a task has no layout of local files, or
    DataError if such a file is missing or wrong.
    """
    _require_harness()
    check_names(wanted, _manager(all(one.task in KNOWN for one in wanted)).task_index)
    if data_dir is not None:
        for one in wanted:
            read_local(data_dir, one)


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
def _manager(only_known: bool) -> Any:
    """The harness's index of tasks; indexing all of its files takes ten seconds, so known tasks are indexed alone."""
    import lm_eval.tasks as home

    folder = Path(home.__file__).parent
    if not only_known:
        return home.TaskManager()
    return home.TaskManager(include_path=[str(folder / name) for name in HOMES], include_defaults=False)


def _lm(**how: Any) -> Any:
    """The harness's model, without progress bars.

    Processes share the answers and not, as the harness would, the items: examples would then be drawn otherwise.
    """
    from lm_eval.models.huggingface import HFLM

    class Shared(HFLM):  # type: ignore[misc]
        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: Any = None) -> Any:
            mine = super()._loglikelihood_tokens(parallel.portion(requests), True, override_bs)
            return [*chain.from_iterable(parallel.gather(mine))]

    return Shared(**how)


def _score(lm: Any, one: Wanted, data_dir: Path | None, limit: int | None) -> TaskScore:
    from lm_eval import evaluate
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    score = TaskScore(one.task, one.title, one.shots)
    try:
        if data_dir is None:
            loaded = _manager(one.task in KNOWN).load(one.task)
        else:
            rows, score.remark = read_local(data_dir, one)
            loaded = _local_tasks(one, rows)
        for task in loaded["tasks"].values():
            if one.shots is not None or task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", one.shots or 0)
            task.set_fewshot_seed(DEFAULT_OTHER_SEED)
        share = None if limit is None else -(-limit // len(loaded["tasks"]))
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


def read_local(folder: Path, one: Wanted) -> tuple[dict[str, Rows], str]:
    """Rows of the scored split and, if the task takes one, of the split for examples; and a remark about the latter."""
    if one.task not in KNOWN:
        raise RecipeError(
            f"--data-dir has no layout for the task '{one.task}'; known are {', '.join(KNOWN)}. Leave --data-dir "
            "out to let the harness fetch its own data"
        )
    if not folder.is_dir():
        raise RecipeError(f"--data-dir {folder}: there is no such folder")
    known = KNOWN[one.task]
    wanted = (known.split, known.pool) if one.shots or known.by_subject else (known.split,)
    files = {split: _local_file(folder / one.task, split) for split in wanted}
    rows = {split: _rows(path, known.fields) for split, path in files.items()}
    pool = files.get(known.pool)
    if pool is None:
        return rows, ""
    if len(rows[known.pool]) <= (one.shots or 0):
        raise DataError(
            f"{pool}: '{one.task}' draws {one.shots} examples from more rows than these {len(rows[known.pool])}"
        )
    return rows, "" if pool.name.split(".")[0] == known.pool else f"examples from {pool.name}"


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
    for where, row in json_records(path):
        if missing := [name for name in fields if name not in row]:
            raise DataError(
                f"{where}: the task reads {', '.join(fields)}, but the row has no {', '.join(missing)}, "
                f"only {', '.join(row)}"
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def _local_tasks(one: Wanted, rows: dict[str, Rows]) -> Any:
    """The harness's task on local rows; a task for each subject, and their group, if the files join subjects."""
    from datasets import Dataset, DatasetDict
    from lm_eval.config.group import AggMetricConfig

    known = KNOWN[one.task]

    def source(subject: str | None = None) -> Callable[..., Any]:
        parts = {
            split: Dataset.from_list([row for row in part if subject in (None, row.get("subject"))])
            for split, part in rows.items()
        }
        return lambda **_: DatasetDict(parts)

    if known.by_subject:
        subjects = sorted({str(row["subject"]) for row in rows[known.split]})
        members = [{"task": f"{one.task}_{subject}", "custom_dataset": source(subject)} for subject in subjects]
    else:  # without splits that have no rows
        splits = {f"{split}_split": split if split == known.split else None for split in ("validation", "test")}
        pool = known.pool if known.pool in rows else None
        members = [{"task": one.task, "custom_dataset": source(), "training_split": pool, **splits}]
    loaded = _manager(True).load({"group": LOCAL, "task": members})
    if known.by_subject:
        loaded["groups"][LOCAL].aggregate_metric_list = [AggMetricConfig(metric=known.metric, weight_by_size=True)]
    return loaded


def _read_result(score: TaskScore, results: Any) -> None:
    table = results["results"]
    metrics = next(table[name] for name in (score.task, LOCAL, *table) if name in table)
    score.metrics = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
    wanted = KNOWN[score.task].metric if score.task in KNOWN else None
    names = [key for key in score.metrics if "_stderr," not in key and "," in key]
    chosen = next((key for key in names if key.partition(",")[0] == wanted), names[0] if names else None)
    if chosen is None:
        score.error = "the harness reported no metric"
        return
    score.metric, _, filtered = chosen.partition(",")
    score.value, score.stderr = score.metrics[chosen], score.metrics.get(f"{score.metric}_stderr,{filtered}")
    counts = results["n-samples"].values()
    score.items = sum(int(count["effective"]) for count in counts)
    score.total = sum(int(count["original"]) for count in counts)
    if score.shots is None:
        score.shots = next((int(shots) for shots in results.get("n-shot", {}).values()), None)


def as_json(scores: Sequence[TaskScore]) -> list[JsonObject]:
    """Scores as plain values."""
    return [asdict(score) for score in scores]


def from_json(path: Path, rows: object) -> dict[str, TaskScore]:
    """Scores by task, from the result of `as_json` in a file. Raises ArtifactError if it is something else."""
    return {score.task: score for score in validated(path, list[TaskScore], rows)}
