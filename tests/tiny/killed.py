"""A search that is killed without warning, again and again: run as a process of its own.

`python -m tests.tiny.killed MODEL TEXT FOLDER SEED` runs the search once undisturbed into FOLDER/whole. Then it starts
the same search in FOLDER/killed in child processes, which it kills with SIGKILL after random times, until one of them
ends by itself. It prints how often it killed one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from darwinlm.console import Reporter
from darwinlm.pipeline import run_stages
from darwinlm.recipe import load_recipe
from darwinlm.run import Run
from tests.tiny.checkpoint import SETTINGS

MOST_KILLS = 12
SEARCH = ("search.generations=8",)


def search(model: str, text: str, folder: Path) -> None:
    recipe = load_recipe(None, (*SETTINGS, *SEARCH), {"model": model, "text.source": text, "budget.keep": "60%"})
    run_stages(Run(recipe, folder, Reporter(Console(quiet=True))), "search")


def forked(model: str, text: str, folder: Path, patience: float | None) -> bool:
    """Search in a child; False when it had to be killed because it took longer than `patience` seconds."""
    child = os.fork()
    if child == 0:
        try:
            search(model, text, folder)
        except BaseException as error:  # noqa: BLE001 - a child that fails must not become a second parent
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    end = None if patience is None else time.monotonic() + patience
    while True:
        done, status = os.waitpid(child, os.WNOHANG if end is not None else 0)
        if done:
            assert status == 0, "the search failed"
            return True
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.005)


def main() -> None:
    model, text, folder, seed = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    begun = time.monotonic()
    forked(model, text, folder / "whole", None)
    whole = time.monotonic() - begun
    rng = random.Random(seed)
    kills = 0
    while not forked(model, text, folder / "killed", rng.uniform(0.2, 0.8) * whole if kills < MOST_KILLS else None):
        kills += 1
    print(kills)


if __name__ == "__main__":
    main()
