"""Results of a run's stages as attributes."""

from __future__ import annotations

from types import SimpleNamespace

from darwinlm.execution.run import Run


def run_stages(run: Run, until: str) -> SimpleNamespace:
    """Run the stages in order up to one of them, and return the result of each by its name."""
    run.until(until)
    return SimpleNamespace(**{name: run.result(name) for name in run.graph.before(until)})
