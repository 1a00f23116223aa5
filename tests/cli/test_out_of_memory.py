"""A device without free memory: one message with the stage and a setting; the run can be resumed."""

from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets
from tests.tiny.published import published_config

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.needs.sizes import Sizes
from darwinlm.planning.devices import find_device
from darwinlm.planning.plan import advice, make_plan
from darwinlm.recipe import load_recipe
from darwinlm.recovery.train import Training

TRAINING = ("recovery.tokens=512", "recovery.batch_tokens=128", "refit.tokens=0")


FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: ..."),
)


@pytest.mark.parametrize("error", FULL)
def test_one_message_names_stage_and_setting(error, command, tiny_llama, tiny_text_file, tmp_path, monkeypatch):
    settings = (*SETTINGS, *TRAINING, "compute.batch_tokens=128")
    common = ("prune", tiny_llama, "--keep", "60%", "--text", tiny_text_file, "--out", tmp_path / "out")
    arguments = (*common, *sets(settings))

    def full(self: Training, step: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", full)
        ended = command(*arguments)
        ended.refused("recovery: the memory of cpu is full: no single setting makes it fit", "; finished work is kept")
    assert command(*arguments).code == 0


@pytest.mark.parametrize("stage", ["recover", "search", "refit", "database"])
def test_the_advice_takes_less_memory(stage: str, tmp_path: Path) -> None:
    folder = published_config(tmp_path, "llama2-7b-2.7b")
    recipe = load_recipe(
        "llama2-7b-2.7b-fast", ("recovery.tokens=1B", "compute.batch_tokens=65536"), {"model": str(folder)}
    )
    sizes, device = Sizes(Checkpoint.describe(folder), recipe), find_device("h100")

    def needed(sizes: Sizes) -> float:
        return next(need for need in make_plan(sizes, device).needs if need.name == stage).device_bytes

    changes = advice(sizes, stage, device).partition(" would fit")[0].split(" and ")
    assert needed(Sizes(sizes.checkpoint, load_recipe(recipe, changes, {}))) < 0.85 * needed(sizes)


def test_advice_for_a_stage_without_a_plan(tiny_llama: Path) -> None:
    sizes = Sizes(Checkpoint.describe(tiny_llama), load_recipe(None, SETTINGS, {"model": str(tiny_llama)}))
    assert advice(sizes, "latency", find_device("h100")) == "lower compute.batch_tokens"
