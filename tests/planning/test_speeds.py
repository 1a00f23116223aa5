"""Times of steps on a GPU: the slowest of what works side by side, at stated, expected or measured rates."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME
from tests.tiny.checkpoint import SETTINGS
from transformers import LlamaConfig

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.pipeline import STEPS
from darwinlm.planning import measured_speed
from darwinlm.planning.measured_speed import measure_speed
from darwinlm.planning.run_plan import plan_card, plan_here
from darwinlm.planning.speeds import CARDS, CardSpeed, PassSpeed, expected_speed, stated_speed
from darwinlm.recipe import load_recipe
from darwinlm.runtime.step import Cost, Work
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.workload import Workload
from lab.benchmarks.gpu_tables import LARGE, planned

SPEED = CardSpeed(products=100, float32=10, float64=1, memory=50, copies=20, reading=4, writing=2, link=5, launch=0.1)


def sizes_of(folder: Path, *assignments: str, processes: int = 1) -> RunSizes:
    recipe = load_recipe(None, (*SETTINGS, "compute.dtype=bfloat16", *assignments), {"model": str(folder)})
    return RunSizes(Checkpoint.describe(folder), recipe, processes)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work(products=300, float32=20, float64=1), 6),  # one after another
        (Work(products=300, moved=100), 5),
        (Work(products=300, copied=100), 5),  # side by side
        (Work(products=300, read=8, written=6), 5),
        (Work(products=300, sent=25), 5),
        (Work(products=300, launches=50), 5),
    ],
)
def test_the_slowest_unit_decides(work: Work, seconds: float) -> None:
    assert SPEED.of_part(work) == pytest.approx(seconds)
    cost = Cost(1e9, {}, parts={"one": work, "another": work * 2})
    assert SPEED.seconds(cost, 1) == pytest.approx(3 * seconds)
    assert SPEED.seconds(replace(cost, parts={"both": work + work}), 1) == pytest.approx(2 * seconds)


def test_what_was_not_counted_takes_the_time_of_products() -> None:
    """Such as a search method or a step of a script."""
    assert SPEED.seconds(Cost(1000, {}), 2) == pytest.approx(5)
    assert PassSpeed(10.0).seconds(Cost(1000, {}, parts={"one": Work(launches=9)}), 2) == pytest.approx(50)


def test_more_cores_and_faster_devices_do_not_help_everything() -> None:
    cost = Cost(1000, {}, alone=400, python=7)
    assert PassSpeed(10.0).seconds(cost, 1) == pytest.approx(100 + 7)
    assert PassSpeed(10.0, core=5.0).seconds(cost, 2) == pytest.approx(60 / 2 + 80 / 2 + 7)
    assert SPEED.seconds(cost, 2) == pytest.approx(5 + 7)


def test_what_goes_step_by_step_needs_one_core(tiny_llama: Path) -> None:
    rows = {
        row.step: row.cost for row in plan_here(STEPS, sizes_of(tiny_llama), torch.device("cpu"), PassSpeed(1.0)).rows
    }
    assert 0 < rows["evaluate"].alone < rows["evaluate"].operations
    assert rows["search"].alone == 0
    assert 0 < rows["database"].alone < rows["database"].operations, "removal orders go step by step"


@pytest.mark.parametrize("card", CARDS)
def test_less_is_expected_of_a_card_than_its_maker_states(card: str) -> None:
    stated, expected = (speed(CARDS[card]) for speed in (stated_speed, expected_speed))
    for field in fields(CardSpeed):
        best, likely = (getattr(speed, field.name) for speed in (stated, expected))
        assert best < likely if field.name == "launch" else 0 < likely < best, field.name
    assert stated_speed(CARDS[card], 64).link <= stated.link, "a network is no faster than the links of a machine"


def test_every_stage_on_a_card_is_counted(tiny_llama: Path) -> None:
    training = ("recovery.tokens=512", "recovery.batch_tokens=128", "text.source=self", "budget.speedup=2x")
    sizes = sizes_of(tiny_llama, *training, "text.evaluation_tokens=4096")
    for row in plan_card(STEPS, sizes, "h100").rows:
        assert row.cost.parts, row.step
        for part in row.cost.parts.values():
            assert all(getattr(part, field.name) >= 0 for field in fields(Work)), row.step


def test_processes_share_what_can_be_shared(tiny_llama: Path) -> None:
    one, two = (plan_card(STEPS, sizes_of(tiny_llama, processes=count), "h100") for count in (1, 2))
    for alone, shared in zip(one.rows, two.rows, strict=True):
        before, after = (sum(row.cost.parts.values(), Work()) for row in (alone, shared))
        assert after.operations <= before.operations, alone.step
        assert after.read <= before.read, alone.step
        exchanged = shared.step in ("gradients", "database", "search", "refit", "chats", "evaluate")
        assert ("exchange" in shared.cost.parts) == exchanged, alone.step
        assert "exchange" not in alone.cost.parts
        if exchanged:
            read = [row.cost.parts["passes"].read for row in (alone, shared)]
            assert read[1] < read[0], "each of them reads its own blocks"
            assert shared.cost.parts["exchange"].sent > 0
    database = [next(row.cost.parts for row in plan.rows if row.step == "database") for plan in (one, two)]
    assert database[1]["factors"].float64 == pytest.approx(database[0]["factors"].float64 / 2)
    assert database[1]["writing"].written == pytest.approx(database[0]["writing"].written / 2)
    assert database[1]["passes"].sent > database[0]["passes"].sent == 0
    search = [next(row.cost.parts for row in plan.rows if row.step == "search") for plan in (one, two)]
    assert search[1]["passes"].read == pytest.approx(search[0]["passes"].read / 2), "each reads its own blocks"
    assert search[1]["modules"].float32 == pytest.approx(search[0]["modules"].float32 / 2)
    assert search[1]["slopes"].float32 < search[0]["slopes"].float32
    refit = [next(row.cost.parts for row in plan.rows if row.step == "refit") for plan in (one, two)]
    assert refit[1]["writing"].written == pytest.approx(refit[0]["writing"].written / 2)


def test_what_no_card_can_hold_is_held_by_all_together(tmp_path: Path) -> None:
    """A 70B is read in each walk of the search by one card, and once by eight."""
    config = LlamaConfig(**LARGE["Llama-3.1-70B"], dtype="bfloat16")
    config.save_pretrained(tmp_path)
    recipe = load_recipe(None, ("compute.dtype=bfloat16",), {"model": str(tmp_path)})
    sizes = [RunSizes(Checkpoint.describe(tmp_path), recipe, count) for count in (1, 8)]
    parts = [
        next(row for row in plan_card(STEPS, each, "h100").rows if row.step == "search").cost.parts for each in sizes
    ]
    assert parts[0]["passes"].read > 20 * sizes[0].blocks * 2
    assert parts[1]["passes"].read == pytest.approx(sizes[0].blocks * 2 / 8)
    assert parts[1]["exchange"].sent > 20 * sizes[0].blocks * 2
    products = [each["passes"].products for each in parts]
    assert products[1] < products[0] / 4, "processes share the sequences of a window, and the dense model's passes"


def test_modules_that_stay_are_sent_once() -> None:
    """On eight cards, the parent of a 7B and a generation's children stay beside the blocks."""
    plan = planned("llama2-7b-2.7b-fast", "h100", 8)
    exchange = next(row for row in plan.rows if row.step == "search").cost.parts["exchange"]
    levels = 2 * plan.sizes.recipe.section(SearchSettings).generations  # two new ones of each module
    assert exchange.sent < 1.1 * (1 + levels * plan.sizes.kept) * plan.sizes.blocks * 2


@pytest.mark.parametrize("rate", [1e3, 1e4])
def test_the_units_of_a_card_that_is_here_are_measured(rate: float, tiny_llama: Path, monkeypatch) -> None:
    """And multiplied by a factor that gives the measured time of a block's pass."""
    monkeypatch.setattr(measured_speed, "measure_rate", lambda *_: PassSpeed(rate))
    monkeypatch.setattr(measured_speed, "TIMED", 1e-9)
    with pretend_gpu():
        device, sizes = torch.device(NAME), sizes_of(tiny_llama)
        speed = measure_speed(sizes, device)
        assert isinstance(speed, CardSpeed)
        plan = plan_here(STEPS, sizes, device, speed)
    assert all(getattr(speed, field.name) > 0 for field in fields(CardSpeed))
    passes = Workload(sizes, {}, on_cpu=False, memory=0.0).passes(sizes.pass_tokens)
    assert speed.of_part(passes) == pytest.approx(passes.operations / rate, rel=1e-3)
    shortest, longest = plan.seconds()
    assert shortest == longest == pytest.approx(sum(speed.seconds(row.cost, 1) for row in plan.rows))
    assert isinstance(measure_speed(sizes, torch.device("cpu")), PassSpeed)
