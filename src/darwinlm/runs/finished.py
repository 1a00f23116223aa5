"""Finished runs: their figures, and the model that they pruned."""

from __future__ import annotations

from pathlib import Path

from darwinlm.pipeline import STEPS
from darwinlm.report.summary import FILE, Summary
from darwinlm.report.summary import read_summary as read_with
from darwinlm.runtime.artifact import STAGES
from darwinlm.runtime.figures import StepFigures

FIGURES: dict[str, type[StepFigures]] = {step.name: step.Figures for step in STEPS if step.Figures is not None}
"""What each step of a run tells, by its name."""


def read_summary(path: Path) -> Summary:
    """Read the summary.json of a run of this pipeline. Raises ArtifactError if it is something else."""
    return read_with(path, FIGURES)


def dense_of(source: str) -> str | None:
    """The original model of a finished run, which `source` names by its folder; None if it is something else.

    Raises ArtifactError if the run's summary is damaged.
    """
    run = Path(source).expanduser()
    if not (run / FILE).is_file():
        return None
    converted = run / STAGES / "source"  # of a GGUF file
    return str(converted) if converted.is_dir() else read_summary(run / FILE).model
