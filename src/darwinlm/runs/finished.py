"""Finished runs: their figures, and the model that they pruned."""

from __future__ import annotations

from pathlib import Path

from darwinlm.pipeline import STEPS
from darwinlm.report.summary import FILE, Summary
from darwinlm.report.summary import read_summary as read_with
from darwinlm.runtime.artifact import MANIFEST, MARKER, STAGES
from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.figures import StepFigures

FIGURES: dict[str, type[StepFigures]] = {step.name: step.Figures for step in STEPS if step.Figures is not None}
"""What each step of a run tells, by its name."""


def summary_of(run: Path) -> Path:
    """Path of a run's summary. Raises ArtifactError, with what to do, if there is none."""
    path = run / FILE
    if path.is_file():
        return path
    if (run / "index.html").is_file():
        sizes = ", ".join(str(member.parent) for member in sorted(run.glob(f"*/{FILE}")))
        raise ArtifactError(f"{run} holds several sizes: show one of {sizes}; {run / 'index.html'} compares them")
    if (run / MARKER).is_file():
        finished = sorted(manifest.parent.name for manifest in run.glob(f"{STAGES}/*/{MANIFEST}"))
        raise ArtifactError(
            f"the run in {run} isn't finished (done: {', '.join(finished) or 'nothing yet'}): "
            "rerun its command to resume"
        )
    raise ArtifactError(f"{run} is not a run: give the output folder of darwinlm prune or recover")


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
