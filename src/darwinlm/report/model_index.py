"""The results of the evaluation as metadata of a model card, in the form that the hub reads (`model-index`)."""

from __future__ import annotations

import math
import re

from darwinlm.report import wording
from darwinlm.report.summary import Summary
from darwinlm.runtime.published import short_source
from darwinlm.steps.evaluate.metric import token_metrics

HUB_TEXT = re.compile(r"hf:([\w.-]+/[\w.-]+)([:@].*)?")
"""A data set of the hub, with a configuration or a revision."""


def hub_dataset(source: str | None) -> str | None:
    """The id of a text's data set on the hub; None if the text is something else."""
    found = HUB_TEXT.fullmatch(source or "")
    return None if found is None else found.group(1)


def model_index(summary: Summary, task: str) -> list[dict[str, object]]:
    """What was measured of the saved model on text; empty if nothing was. Files are named without their folders."""
    from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

    source = summary.text.source
    results = [
        EvalResult(
            task_type=task,
            dataset_type=hub_dataset(source) or "text",
            dataset_name=short_source(source),
            metric_type=metric.name,
            metric_value=float(f"{value:.5g}"),
            metric_name=metric.heading,
        )
        for metric in token_metrics()
        if (value := summary.saved.metrics.get(metric.name)) is not None and math.isfinite(value)
    ]
    index: list[dict[str, object]] = eval_results_to_model_index(wording.title(summary), results) if results else []
    return index
