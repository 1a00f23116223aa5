"""Devices of the plan, and how fast this machine works, by simulated clocks."""

import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.needs.sizes import Sizes
from darwinlm.planning.devices import device_here, find_device
from darwinlm.planning.plan import estimate
from darwinlm.planning.probe import Machine
from darwinlm.recipe import load_recipe
from darwinlm.runtime.errors import RecipeError, StorageError

CPU = torch.device("cpu")


def test_devices_have_memory_and_sources() -> None:
    assert find_device("cpu").is_here
    assert find_device("cpu").memory > 1e8
    card = find_device("h100")
    assert (card.is_here, card.memory) == (False, 80 << 30)
    assert "data sheet" in card.source
    with pytest.raises(RecipeError, match="'h10' isn't known: did you mean 'h100'"):
        find_device("h10")
    with pytest.raises(RecipeError, match=r"known are h100, .*, cpu"):
        find_device("abacus")


def test_cuda_is_the_card_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match="--device cuda: this machine's PyTorch finds no GPU: name the card"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda kind: SimpleNamespace(name="Some Card 7", total_memory=42)
    )
    assert (find_device("cuda").name, find_device("cuda").memory, find_device("cuda").is_here) == (
        "Some Card 7",
        42,
        True,
    )


def test_apples_gpu_has_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 42)
    device = device_here(torch.device("mps"))
    assert (device.name, device.memory, device.is_here) == ("mps", 42, True)


def test_a_floor_runs_each_kind_at_its_type_and_never_faster_than_memory() -> None:
    card = find_device("h100")
    rates = card.peak_rates("bfloat16").by_kind
    assert (rates["passes"], rates["moments"], rates["removal"], rates["factors"]) == (989e12, 989e12, 67e12, 34e12)
    assert rates["decoding"] == card.bandwidth == 3350e9
    assert "disk" not in rates
    assert card.peak_rates("float32").by_kind["passes"] == 67e12


def sizes_of(folder: Path, *assignments: str) -> Sizes:
    return Sizes(Checkpoint.describe(folder), load_recipe(None, (*SETTINGS, *assignments), {"model": str(folder)}))


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gemma2", "lfm2"])
def test_every_kind_of_work_is_measured_on_random_weights(model_type: str, tiny_folder) -> None:
    sizes = sizes_of(tiny_folder(model_type), "recovery.tokens=256")
    machine = Machine(sizes, CPU)
    used = {kind for need in estimate(sizes, find_device("cpu")) for kind in need.work}
    assert {"passes", "training", "heads", "removal", "factors", "hashing", "tokenising"} < used
    for kind in used | {"decoding", "updates"}:
        assert 1e4 < machine[kind] < 1e14, kind
    assert machine.slowdown() >= 1


def ticking(step: Callable[[int], float]) -> Callable[[], float]:
    """A clock that advances by a step whenever it is read."""

    def times() -> Iterator[float]:
        now, number = 0.0, 0
        while True:
            yield now
            now, number = now + step(number), number + 1

    generator = times()
    return lambda: next(generator)


def test_a_piece_that_waits_is_timed_by_the_processor(tiny_llama: Path) -> None:
    """Two busy programs beside it, or one long interruption, don't change what an idle machine would take."""
    sizes = sizes_of(tiny_llama)
    idle = Machine(sizes, CPU, (ticking(lambda _: 0.2), ticking(lambda _: 0.2)))["hashing"]
    busy = Machine(sizes, CPU, (ticking(lambda _: 1.0), ticking(lambda _: 0.2)))["hashing"]
    threads = Machine(sizes, CPU, (ticking(lambda _: 0.2), ticking(lambda _: 0.4)))["hashing"]
    interrupted = Machine(sizes, CPU, (ticking(lambda n: 9.0 if n == 2 else 0.2), ticking(lambda _: 0.4)))["hashing"]
    assert busy == pytest.approx(idle)
    assert threads == pytest.approx(idle)
    assert interrupted == pytest.approx(idle)


def test_the_present_speed_is_that_of_the_wall_clock(tiny_llama: Path) -> None:
    machine = Machine(sizes_of(tiny_llama), CPU, (ticking(lambda _: 0.8), ticking(lambda _: 0.2)))
    # Of the present passes, the clock is read before and after each.
    assert machine.slowdown() == pytest.approx(0.8 * 3 / 2 / 0.2 / len(machine._blocks), rel=1.0)
    assert Machine(sizes_of(tiny_llama), CPU, (ticking(lambda _: 0.1), ticking(lambda _: 0.2))).slowdown() >= 1


def test_a_disk_that_refuses_is_named(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(
        StorageError, match=re.escape(f"can't write {tempfile.gettempdir()}: the file system or a limit")
    ):
        Machine(sizes_of(tiny_llama), CPU)["disk"]
