"""External logs: accelerate's adapters of TensorBoard, Trackio and Weights & Biases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from darwinlm import parallel
from darwinlm.artifact import digest_of


def start_trackers(names: Sequence[str], folder: Path, run: dict[str, Any], step: int) -> list[Any]:
    """Trackers by name, in the first process; the others get none.

    `run` is the identity of the training; a service continues the run with this identity. TensorBoard hides entries
    after `step`.
    """
    if not names or not parallel.is_main():
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    name = digest_of(run)[:16]
    options: dict[str, dict[str, Any]] = {
        "tensorboard": {"logging_dir": folder, "purge_step": step + 1},
        "trackio": {"name": name, "resume": "allow"},
        "wandb": {"name": name, "id": name, "resume": "allow"},
    }
    started = [LOGGER_TYPE_TO_CLASS[kind](run_name="darwinlm", **options[kind]) for kind in names]
    for tracker in started:
        tracker.start()
    return started
