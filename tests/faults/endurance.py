"""Memory and open files of long runs in one process: 500 generations of a search, and 50 recoveries, each resumed once.

`python -m tests.faults.endurance FOLDER [GENERATIONS] [RECOVERIES]` prints them along the way, as JSON.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from darwinlm.pipeline import open_run
from darwinlm.recipe import load_recipe
from darwinlm.runs.recovery import recover
from darwinlm.runtime.console import Reporter
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint, tiny_text
from tests.tiny.recovering import RECOVERY
from tests.tiny.stages import run_stages

POINTS = 10


def used() -> dict[str, float]:
    """Resident memory in MiB, and the number of open files."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {"MiB": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1), "files": len(os.listdir("/proc/self/fd"))}


class Watching(Reporter):
    """Prints nothing but what is used after every so many steps; stops at one, if wanted."""

    def __init__(self, every: int = 0, stop_at: int | None = None) -> None:
        super().__init__(Console(quiet=True))
        self.every, self.stop_at = every, stop_at

    def step(self, done: int, total: int, *, what: str, **more: Any) -> None:
        if self.every and what == "generation" and done and done % self.every == 0:
            print(json.dumps({"generation": done, **used()}), flush=True)
        super().step(done, total, what=what, **more)

    def advance(self, done: int, total: int) -> None:
        super().advance(done, total)
        if self.stop_at is not None and done == self.stop_at:
            raise KeyboardInterrupt


def _prune(model: Path, text: Path, out: Path, until: str, setting: str, every: int = 0) -> None:
    given = {"model": str(model), "text.source": str(text), "budget.keep": "60%"}
    recipe = load_recipe(None, (*SETTINGS, "units.mlp_multiple=2", setting), given)
    run_stages(open_run(recipe, out, Watching(every)), until)


def main(folder: Path, generations: int, recoveries: int) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True)
    text, pruned = tiny_text(folder / "text.txt"), folder / "pruned"
    deep = tiny_checkpoint(folder / "deep", num_hidden_layers=12)  # 4 blocks have too few allocations
    _prune(deep, text, folder / "searched", "search", f"search.generations={generations}", generations // POINTS)
    _prune(tiny_checkpoint(folder / "model"), text, pruned, "report", "search.generations=3")
    stopped = 0
    for number in range(recoveries):
        for stop_at in (6, None):
            with contextlib.suppress(KeyboardInterrupt):
                recover(
                    pruned,
                    folder / f"recovered-{number}",
                    text=str(text),
                    assignments=RECOVERY,
                    reporter=Watching(stop_at=stop_at),
                )
                continue
            stopped += 1
        if (number + 1) % max(recoveries // POINTS, 1) == 0:
            print(json.dumps({"recovery": number + 1, "resumed": stopped, **used()}), flush=True)
    weights = {path.read_bytes() for path in folder.glob("recovered-*/model/model.safetensors")}
    print(json.dumps({"different weights": len(weights)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(int(word) for word in sys.argv[2:] or ("500", "50")))
