"""A measure that is a task of lm-evaluation-harness: the score of each of its items."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.evaluation import harness
from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.evaluation.suites import KNOWN, SuiteTask
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of
from darwinlm.runtime.errors import DarwinLMError, MeasureError, RecipeError, first_line
from darwinlm.runtime.json_values import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALLOWED = {"HF_ALLOW_CODE_EVAL": "1"}
"""What the metric of the harness's coding tasks wants to see before it runs code."""
BATCH = 8
"""Sequences in a forward pass."""


class BenchmarkMeasure(Measure):
    """A task, or a group of tasks such as MMLU, whose items then follow each other.

    Raises RecipeError if the task runs code and `run_code` isn't given, and as `harness.check_suite`.

    Args:
        task: The task.
        data_dir: Local files, as for suites; None lets the harness fetch them.
        limit: Number of items; None takes all.
        run_code: Whether tasks may run code that a model writes.
    """

    def __init__(self, task: SuiteTask, data_dir: Path | None, limit: int | None, *, run_code: bool) -> None:
        harness.check_suite((task,), data_dir, option="--measure")
        if not run_code and harness.runs_code(task):
            raise RecipeError(
                f"--measure {task.name}: this task runs code that a model writes, on this machine and with your "
                "rights: allow it with --run-code"
            )
        self.task, self.data_dir, self.limit, self.run_code = task, data_dir, limit, run_code
        self.name = task.name if task.shots is None else f"{task.name}:{task.shots}"

    @cached_property
    def _loaded(self) -> JsonObject:
        """The harness's tasks. Raises MeasureError if their data can't be had."""
        if self.run_code:  # coding tasks try their metric out when they are loaded
            os.environ |= ALLOWED
        try:
            return harness.load_task(self.task, self.data_dir)[0]
        except DarwinLMError:
            raise
        except Exception as error:  # tasks are other people's code
            local = " Give local files with --data-dir." if self.task.name in KNOWN and self.data_dir is None else ""
            raise MeasureError(
                f"{self.name}: the harness can't load this task, its data, or its metric: {_told(error)}{local}"
            ) from error

    @cached_property
    def _docs(self) -> list[tuple[str, str]]:
        """The text and the data of each item."""
        share = harness.items_of_each(self.limit, self._loaded)
        return [
            (str(task.doc_to_text(doc)), str(doc))
            for _, task in sorted(self._loaded["tasks"].items())
            for _, doc in zip(range(share or len(task.eval_docs)), task.eval_docs, strict=False)
        ]

    @cached_property
    def digest(self) -> str:
        """The items, the number of examples, and the version of the harness."""
        return digest_of([self.name, self.task.shots, self.limit, version("lm-eval"), self._docs])

    def texts(self) -> list[str]:
        """What the model reads of each item, without examples."""
        return [text for text, _ in self._docs]

    def score(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, known: int = 0) -> Iterator[float]:
        """The task's metric of each item. Raises MeasureError."""
        from lm_eval import evaluate

        assert known == 0, "the harness scores all items at once"
        lm = harness.harness_model(model, tokenizer, BATCH)
        try:
            results = evaluate(
                lm,
                self._loaded,
                limit=harness.items_of_each(self.limit, self._loaded),
                bootstrap_iters=0,
                confirm_run_unsafe_code=self.run_code,
            )
        except Exception as error:  # tasks are other people's code
            if parallel.size() > 1 or isinstance(error, DarwinLMError):  # the others may be waiting for this process
                raise
            raise MeasureError(f"{self.name}: {_told(error)}") from error
        yield from self._of_samples(results["samples"])

    def _of_samples(self, samples: JsonObject) -> list[float]:
        scores: list[float] = []
        for _, rows in sorted(samples.items()):
            names = [f"{metric},{row['filter']}" for row in rows for metric in row["metrics"]]
            key = harness.chosen_metric(self.task.name, list(dict.fromkeys(names)))
            metric, _, chosen = (key or "").partition(",")
            for row in sorted(rows, key=lambda row: row["doc_id"]):
                if row["filter"] != chosen:
                    continue
                value = row.get(metric)
                if not isinstance(value, int | float):
                    raise MeasureError(
                        f"{self.name}: item {len(scores) + 1} has no score of its own ({metric or 'no metric'}): use "
                        "a task that judges each item"
                    )
                scores.append(float(value))
        return scores


def _told(error: Exception) -> str:
    reason = first_line(error)
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
