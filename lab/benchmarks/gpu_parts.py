"""The parts of `gpu.py` by name, each run in a process of its own."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

from lab.benchmarks.gpu_stages import candidates, decoding, recovery, resume, stream, training
from lab.benchmarks.gpu_units import Line, Setup, equality, machine, moments, order, traps
from lab.benchmarks.gpu_whole import database, model, whole

PLANNED = ("llama2-7b-2.7b", "llama2-7b-2.7b-fast")


def plans(setup: Setup) -> None:
    """Planned hours of the shipped recipes, from pieces of their work on this device."""
    from transformers import AutoConfig

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.recipe import load_recipe
    from darwinlm.runs.plan_model import plan_of
    from darwinlm.runtime.context import settled
    from darwinlm.steps.run_sizes import RunSizes

    if setup.tiny:
        return
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        config = AutoConfig.for_model("llama", **sizes, num_key_value_heads=32, vocab_size=32000)
        config.max_position_embeddings = 4096
        config.save_pretrained(folder)
        for name in PLANNED:
            recipe = load_recipe(name, (), {"model": folder})
            recipe = recipe.model_copy(update={"compute": settled(recipe.compute, setup.kind)})
            plan = plan_of(RunSizes(Checkpoint.describe(Path(folder)), recipe), setup.kind)
            for row in plan.rows:
                setup.told("plan", f"{name} {row.step}", plan.seconds(row)[0] / 60, "min")
            setup.told("plan", f"{name} all", plan.seconds()[0] / 3600, "h")


PARTS: dict[str, Callable[[Setup], None]] = {
    "machine": machine,
    "moments": moments,
    "equality": equality,
    "order": order,
    "database": database,
    "model": model,
    "whole": whole,
    "stream": stream,
    "candidates": candidates,
    "training": training,
    "recovery": recovery,
    "resume": resume,
    "decoding": decoding,
    "traps": traps,
    "plan": plans,
}


def run_part(name: str, setup: Setup) -> None:
    """Run one part inside its process."""
    try:
        PARTS[name](setup)
    except Exception as error:  # noqa: BLE001 - whatever it was, it is that part's result
        text = traceback.format_exc().strip().splitlines()
        setup.put(Line(name, f"{name} ended early", f"{type(error).__name__}: {str(error)[:300]}", ok=False))
        setup.put(Line(name, f"{name} ended at", " | ".join(text[-5:-1])[:600], ok=False))
    setup.lines.put(None)
