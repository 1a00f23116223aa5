"""Recovery of a tiny model as a program, which tests can kill and start in several processes.

python -m tests.tiny.recovering SMALL TEACHER TEXT OUT [--kill-at STEP] [--set field=value ...]
"""

from __future__ import annotations

import argparse
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from darwinlm.report.summary import Summary

RECOVERY = (
    "text.sequence_length=32",
    "text.calibration_tokens=2048",
    "text.evaluation_tokens=256",
    "compute.dtype=float32",
    "compute.batch_tokens=128",
    "recovery.tokens=6144",
    "recovery.batch_tokens=512",
    "recovery.learning_rate=0.003",
)
"""Twelve steps, with checkpoints after the fourth, the eighth and the last."""


class Stopped(BaseException):
    """Simulates a kill."""


def stop_at(monkeypatch: Any, step: int, error: BaseException) -> None:
    """Raise an error in a step, before its update."""
    monkeypatch.setattr("darwinlm.steps.recover.train.TrainingLoop.update", _stopping(step, lambda: error))


def losses(summary: Summary) -> list[float]:
    from darwinlm.steps.recover.recovery_figures import RecoveryFigures

    return [point.loss for point in summary.of(RecoveryFigures).log if point.loss is not None]


def watch_text(monkeypatch: Any) -> tuple[list[Any], list[Any]]:
    """Blocks of tokens that recoveries from now on train on, and those that they hold out."""
    from darwinlm.steps.recover.train import Training

    trained, held_out, whole = [], [], Training.train

    def watched(training: Any) -> Any:
        trained.extend(training.text[number]["input_ids"] for number in range(len(training.text)))
        held_out.extend(training.held_out)
        return whole(training)

    monkeypatch.setattr(Training, "train", watched)
    return trained, held_out


def _stopping(step: int, stop: Callable[[], BaseException]) -> Callable[..., None]:
    """An update that ends the training at a step, counted from 0."""
    from darwinlm.steps.recover.train import TrainingLoop

    whole = TrainingLoop.update

    def update(self: Any, at: int) -> None:
        if at == step:
            raise stop()
        whole(self, at)

    return update


def recover_tiny(small: Path, teacher: Path, text: Path, out: Path, *assignments: str) -> Summary:
    """Recover a tiny model in this process, and log every step."""

    from darwinlm.runs.recovery import recover
    from darwinlm.runtime.console import Reporter
    from darwinlm.steps.recover import recovery_settings, train

    settings = (*RECOVERY, *assignments)
    quiet = Reporter(quiet=True)
    often = mock.patch.multiple(recovery_settings, SAVED_EVERY=2048, LONG_TRAINING=0)
    with mock.patch.object(train, "LOG_EVERY", 1), often:
        return recover(small, out, teacher=str(teacher), text=str(text), assignments=settings, reporter=quiet).summary


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("small", "teacher", "text", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.kill_at is not None:
        from darwinlm.steps.recover.train import TrainingLoop

        def kill() -> BaseException:
            os.kill(os.getpid(), signal.SIGKILL)
            return Stopped()

        TrainingLoop.update = _stopping(options.kill_at, kill)  # type: ignore[method-assign]
    recover_tiny(options.small, options.teacher, options.text, options.out, *options.set)


if __name__ == "__main__":
    main()
