"""Benchmark scores as the hub shows them: `.eval_results/darwinlm.yaml` beside a model."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from darwinlm.evaluation.harness import from_json
from darwinlm.runtime.artifact import read_record
from darwinlm.runtime.errors import ArtifactError, DataError

FILE = ".eval_results/darwinlm.yaml"
DATA_SETS = {
    "sciq": ("allenai/sciq", "default"),
    "piqa": ("ybisk/piqa", "plain_text"),
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy"),
    "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge"),
    "logiqa": ("EleutherAI/logiqa", "logiqa"),
    "boolq": ("google/boolq", "default"),
    "winogrande": ("allenai/winogrande", "winogrande_xl"),
    "hellaswag": ("Rowan/hellaswag", "default"),
    "mmlu": ("cais/mmlu", "all"),
}
"""Data set and task on the hub of each benchmark."""


def scores_for_hub(saved: Path) -> str:
    """The finished scores of whole benchmarks, in per cent, as the contents of `FILE`.

    `saved` comes from `darwinlm evaluate --out`. Raises ArtifactError if it doesn't, DataError if it has no such score.
    """
    if not saved.is_file():
        raise ArtifactError(f"there is no file {saved}: give the --out file of darwinlm evaluate")
    result = read_record(saved)
    if not {"request", "tasks"} <= result.keys():
        raise ArtifactError(f"{saved} holds no evaluation: give the --out file of darwinlm evaluate")
    entries = [
        EvalResultEntry(*DATA_SETS[task], round(100 * score.value, 2), notes=f"{score.metric}, {score.shots} shots")
        for task, score in from_json(saved, result["tasks"]).items()
        if task in DATA_SETS and score.value is not None and score.items == score.total
    ]
    if not entries:
        raise DataError(f"{saved}: there is no score of a whole benchmark. Evaluate without --limit.")
    return str(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False))
