"""The parts of `gpu.py` that run the stages of `darwinlm prune` at the shapes of a 7B model, as on a card of 24 GB."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from unittest import mock

import torch

from darwinlm.pipeline import prune
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runs.opening import open_run
from darwinlm.runtime.artifact import MANIFEST, StageFolder
from darwinlm.runtime.compute import exact_device
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.run import Run
from darwinlm.steps.database.step import PruningDatabase
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.results import Inputs
from lab.benchmarks.gpu_stages import UNITS, model_of, random_database, smaller_model
from lab.benchmarks.gpu_units import Setup, planned_bytes

CARD = 24e9
"""Bytes of the card whose memory the stages see; 7B in bfloat16 and its factors don't fit beside each other."""

SECONDS = {"gradients": 10.0, "database": 20.0, "search": 80.0, "stitch": 35.0, "refit": 45.0}
"""Longest times of the stages, on an H100. Of two blocks for the first two, of all 32 for the others. Our estimate."""

SETTINGS = (
    "text.sequence_length=2048",
    "text.calibration_tokens=65536",
    "text.evaluation_tokens=16384",
    "text.looking_back=0",
    "search.generations=2",
    "search.minutes=1",
    "search.rounds=[{tokens: 4096, survivors: 2}, {tokens: 8192, survivors: 1}]",
    "refit.tokens=65536",
    "compute.batch_tokens=8192",
    "compute.dtype=bfloat16",
    "units.mlp_multiple=256",
    "budget.tolerance=0.1",
)


def model(setup: Setup) -> None:
    """Write the whole model, a database of random factors, and the smaller model of one allocation, and keep them."""
    checkpoint = model_of(setup, setup.blocks)
    database = random_database(setup, checkpoint)
    smaller = smaller_model(setup, setup.blocks)
    for name, folder in (("model", checkpoint.folder), ("database", database), ("smaller model", smaller.folder)):
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        setup.told("model", f"bytes of the {name}", size / 1e9, "GB")


def run_stages(setup: Setup, part: str, layers: int, stages: Mapping[str, str], *assignments: str) -> None:
    """Run stages one after the other in a new folder; report the time and the peak of each.

    Args:
        setup: The benchmark's settings.
        part: Name of the part, and of the folder.
        layers: Number of blocks of the model.
        stages: Names of the stages to report, each after the stages that it depends on, by their names in lines.
        assignments: Settings besides `SETTINGS`.
    """
    from rich.console import Console
    from tests.tiny.checkpoint import SETTINGS as TINY
    from tests.tiny.checkpoint import tiny_text
    from tests.tiny.tokenizer import tiny_tokenizer

    folder, text = setup.work / part, setup.work / "text.txt"
    shutil.rmtree(folder, ignore_errors=True)
    dense = model_of(setup, layers).folder
    tiny_tokenizer().save_pretrained(dense)
    if not text.exists():
        tiny_text(text, 400 if setup.tiny else 4000)
    named: dict[str, str | float] = {
        "model": str(dense),
        "text.source": str(text),
        "budget.keep": "60%",
        "compute.device": setup.device,
    }
    on_gpu = setup.kind.type == "cuda"
    if on_gpu:
        named["compute.memory"] = CARD
    recipe = load_recipe(None, (*(TINY if setup.tiny else SETTINGS), *assignments), named)
    run = open_run(recipe, folder, Reporter(Console(quiet=True)))
    planned = planned_bytes(run)
    for name, words in stages.items():
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        run.until = name
        prune(run)
        seconds = next(taken.seconds for taken in run.times if taken.name == name)
        setup.most(part, f"{words} took", seconds, "s", SECONDS[name], speed=True)
        setup.told(part, f"{words} planned", planned[name] / 1e9, "GB")
        if on_gpu:
            setup.most(part, f"{words} peak", torch.cuda.max_memory_allocated() / 1e9, "GB", CARD / 1e9)
    for stage in stages:
        assert (folder / "stages" / stage / MANIFEST).is_file(), stage
    shutil.rmtree(folder)


def database(setup: Setup) -> None:
    """Gradients and database of two blocks, from text to files."""
    run_stages(setup, "database", 2, {"gradients": "gradients of two blocks", "database": "database of two blocks"})


def whole(setup: Setup) -> None:
    """Search, stitch and refit of the whole model, whose blocks are read one after the other."""
    folder = random_database(setup, model_of(setup, setup.blocks))

    def built(run: Run[Recipe], inputs: Inputs) -> PruningDatabase:
        reader = DatabaseReader(folder, inputs.dense, run.recipe.units, device=exact_device(run.context.device))
        return PruningDatabase(reader, StageFolder(folder, {"stage": "database"}))

    stages = {name: name for name in ("search", "stitch", "refit")}
    with mock.patch("darwinlm.pipeline.build", built):
        run_stages(setup, "whole", setup.blocks, stages, f"units.attention={UNITS.attention}")
