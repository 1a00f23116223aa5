"""Tiny local data files of every known task, with the fields that the harness reads."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.tiny.checkpoint import WORDS

SPLITS = {
    "sciq": ("validation", "test"),
    "piqa": ("train", "validation"),
    "arc_easy": ("train", "test"),
    "arc_challenge": ("train", "test"),
    "logiqa": ("test",),
    "boolq": ("validation",),
    "winogrande": ("train", "validation"),
    "hellaswag": ("train_5", "validation"),
    "mmlu": ("dev", "test"),
}
"""The files that are written; a suffix and a packed file are among them."""


QUIET = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning", "ResourceWarning")
]
"""The harness and what it brings along warn about themselves when they are first imported."""


def tiny_benchmarks(folder: Path, items: int = 8) -> Path:
    """Write them; returns the folder."""
    for task, splits in SPLITS.items():
        for split in splits:
            rng = random.Random(f"{task} {split}")
            count = 30 if split.startswith(("train", "dev")) else items
            rows = [_row(task, index, rng) for index in range(count)]
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / task).mkdir(parents=True, exist_ok=True)
            if task == "hellaswag":
                (folder / task / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
            else:
                (folder / task / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def _row(task: str, index: int, rng: random.Random) -> dict[str, Any]:
    def words(count: int = 4) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    options = [words(2) for _ in range(4)]
    answer = rng.randrange(4)
    rows: dict[str, dict[str, Any]] = {
        "sciq": {"distractor1": options[0], "distractor2": options[1], "distractor3": options[2]}
        | {"question": words(), "correct_answer": options[3], "support": words()},
        "piqa": {"goal": words(), "sol1": options[0], "sol2": options[1], "label": answer % 2},
        "logiqa": {"context": words(), "question": words(), "options": options, "label": "abcd"[answer]},
        "boolq": {"passage": words(6), "question": words(), "idx": index, "label": answer % 2},
        "winogrande": {"sentence": f"{words(2)} _ {words(2)}.", "option1": words(1), "option2": words(1)}
        | {"answer": str(1 + answer % 2)},
        "hellaswag": {"ind": index, "activity_label": words(2), "ctx_a": words(), "ctx_b": words(1)}
        | {"endings": options, "label": str(answer)},
        "mmlu": {"question": words(), "subject": ("anatomy", "virology")[index % 2], "choices": options}
        | {"answer": answer},
    }
    choices = {"text": options, "label": ["A", "B", "C", "D"]}
    arc = {"id": str(index), "question": words(), "choices": choices, "answerKey": "ABCD"[answer]}
    return rows.get(task, arc)
