"""The application `python -m lab`, to which commands add themselves."""

from __future__ import annotations

from functools import partial

from darwinlm.cli.app import command as declare
from darwinlm.cli.app import new_app

app = new_app()
command = partial(declare, "Measure", of=app)


@app.callback()
def root() -> None:
    """Measure darwinlm against other methods, and against quantising alone."""
