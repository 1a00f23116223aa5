"""The way down from the start: it lowers the loss, obeys its bounds, and goes on where it was interrupted."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from darwinlm.errors import NumericsError
from darwinlm.families.decoder import Decoder
from darwinlm.pipeline import run_stages
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.evolve import descent, evolution
from darwinlm.search.problem.knapsack import solve_knapsack
from darwinlm.stages.database import database_stage
from darwinlm.stages.plan import plan_stage
from darwinlm.stages.text import text_stage

SETTINGS = ("search.start=random", "search.generations=1", "search.descent_tokens=64", "search.descent_steps=6")
"""A random start leaves much to gain; windows of two sequences, four of them."""


def state_of(folder):
    return json.loads((folder / "stages" / "search" / "descent.json").read_text())


@pytest.fixture(scope="module")
def database(tiny_llama, make_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("descended") / "out"
    run_stages(make_run(tiny_llama, folder, *SETTINGS), "database")
    return folder


@pytest.fixture
def folder(database, tmp_path):
    return Path(shutil.copytree(database, tmp_path / "out"))


@pytest.fixture
def descended(folder, tiny_llama, make_run):
    return run_stages(make_run(tiny_llama, folder, *SETTINGS), "search")


def test_every_step_that_moves_lowers_the_loss_where_it_was_measured(descended, folder):
    record, state = descended["search"].record, state_of(folder)
    assert len(record["descent"]) <= 6
    assert any(step["moved"] for step in record["descent"])
    for step in record["descent"]:
        assert step["change"] < 0 if step["moved"] else step["change"] == 0
    assert record["start_kl"] == state["start_kl"] > record["history"][0]["kl"] >= record["kl"]
    evaluations = [step["evaluations"] for step in record["descent"]]
    assert evaluations == sorted(evaluations)
    assert evaluations[-1] < record["evaluations"]


def test_children_keep_the_budget_and_the_evolution_knows_them(descended, folder):
    state, plan = state_of(folder), descended["plan"]
    assert state["tried"]
    for child in state["tried"]:
        assert plan.budget.lower <= plan.cost.of(tuple(child)) - plan.cost.fixed <= plan.budget.upper
    evolution = json.loads((folder / "stages" / "search" / "evolution.json").read_text())
    assert {tuple(child) for child in state["tried"]} <= {tuple(each) for each in evolution["seen"]}
    assert evolution["observations"][: len(state["observations"])] == state["observations"]


def test_an_interrupted_descent_ends_where_an_uninterrupted_one_does(
    descended, folder, database, tiny_llama, make_run, tmp_path, monkeypatch
):
    again = Path(shutil.copytree(database, tmp_path / "again"))
    write, written = descent.write_json, []

    def interrupted(path, tree):
        write(path, tree)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(descent, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stages(make_run(tiny_llama, again, *SETTINGS), "search")
    assert len(state_of(again)["steps"]) == 2
    monkeypatch.setattr(descent, "write_json", write)
    run_stages(make_run(tiny_llama, again, *SETTINGS), "search")
    states = [state_of(place) for place in (folder, again)]
    for state in states:
        for step in state["steps"]:
            step.pop("seconds")
    assert states[0] == states[1]


def test_it_ends_where_nothing_better_is_found(folder, tiny_llama, make_run, monkeypatch):
    monkeypatch.setattr(descent, "guided", lambda *arguments, **named: [])
    found = run_stages(make_run(tiny_llama, folder, *SETTINGS), "search")
    record = found.search.record
    assert [step["moved"] for step in record["descent"]] == [0, 0, 0]
    assert state_of(folder)["ended"] == "nothing better found"
    assert record["start_kl"] == record["history"][0]["kl"]


def test_it_goes_back_to_the_start_where_single_windows_misled_it(folder, tiny_llama, make_run, monkeypatch):
    measured = Fitness.kl_on

    def kl_on(self, allocations, window):
        losses = measured(self, allocations, window)
        if window != (0, self.n_sequences):  # what comes later looks better on every window
            return [loss - place for place, loss in enumerate(losses)]
        return [loss + place for place, loss in enumerate(losses)]

    monkeypatch.setattr(Fitness, "kl_on", kl_on)
    run_stages(make_run(tiny_llama, folder, *SETTINGS), "search")
    evolution = json.loads((folder / "stages" / "search" / "evolution.json").read_text())
    assert state_of(folder)["parent"] == evolution["seen"][0]
    assert evolution["seen"][0] not in state_of(folder)["tried"]


def test_no_step_is_begun_when_time_is_up(folder, tiny_llama, make_run):
    found = run_stages(make_run(tiny_llama, folder, *SETTINGS, "search.minutes=0.000001"), "search")
    assert found.search.record["descent"] == []
    assert state_of(folder)["ended"] == "time is up"


@pytest.mark.parametrize("setting", ["search.descent_steps=0", "search.slope_tokens=0", "search.screen=false"])
def test_without_steps_or_gradients_there_is_none(setting, folder, tiny_llama, make_run):
    found = run_stages(make_run(tiny_llama, folder, *SETTINGS, setting), "search")
    assert found.search.record["descent"] is None
    assert not (folder / "stages" / "search" / "descent.json").exists()


def test_a_parent_that_overflows_is_named(folder, tiny_llama, make_run, monkeypatch):
    monkeypatch.setattr(Fitness, "kl_on", lambda self, allocations, window: [math.inf] * len(allocations))
    monkeypatch.setattr(Fitness, "kl", lambda self, allocation, n_tokens: 1.0)
    with pytest.raises(NumericsError, match=r"the allocation's values aren't finite: try compute\.dtype=float32"):
        run_stages(make_run(tiny_llama, folder, *SETTINGS), "search")


def test_runners_up_are_ranked_by_the_sum_of_what_was_seen():
    start, low, lower, high, beside = ((level,) for level in range(5))
    seen = [(start, low, -0.3, 0.0), (start, high, 0.2, 0.0), (low, lower, -0.2, 0.0), (low, beside, 0.1, 0.0)]
    found = descent.Descent(lower, observations=seen).runners_up()
    assert found == [low, beside, start, high]
    assert descent.Descent(start).runners_up() == []


def test_finalists_come_from_the_way_where_no_generation_was_begun(folder, tiny_llama, make_run, monkeypatch):
    monkeypatch.setattr(evolution, "_expected_seconds", lambda fitness, settings: math.inf)
    settings = (
        *SETTINGS,
        "search.minutes=60",
        "search.finalists=3",
        "search.finalist_rounds=[]",
        "search.proxy=gradient",
    )
    found = run_stages(make_run(tiny_llama, folder, *settings), "search")
    record, state = found.search.record, state_of(folder)
    assert len(record["history"]) == 1
    candidates = record["finalists"]["candidates"]
    assert len(candidates) == 3
    losses = [each["kl_before"] for each in candidates]
    assert losses == sorted(losses)
    assert losses[0] == record["history"][0]["kl"]
    named = [tuple(each["allocation"]) for each in candidates]
    assert len(set(named)) == 3
    assert set(named) <= {tuple(each) for each in (state["parent"], *state["tried"])} | {tuple(first_of(folder))}
    # The two others were measured, unless their losses were known from the way.
    assert record["evaluations"] == state["steps"][-1]["evaluations"] + 2


def first_of(folder):
    """The start, which the evolution names behind its first parent."""
    return json.loads((folder / "stages" / "search" / "evolution.json").read_text())["seen"][1]


# ------------------------------------------------------------------------------------------------------------- windows


@pytest.fixture
def fitness(folder, tiny_llama, make_run):
    run = make_run(tiny_llama, folder, *SETTINGS)
    texts, plan = text_stage(run), plan_stage(run)
    model = run.checkpoint.load(torch.float64)
    placed = PlacedModules(Decoder(model, run.checkpoint.family), database_stage(run, texts).reader, plan.space)
    losses = [[float(level) for level in range(len(module.levels))] for module in plan.space.modules]
    small = solve_knapsack(losses, plan.cost.costs, plan.budget.lower, plan.budget.upper, words=plan.budget.words)
    return Fitness(placed, texts["fitness"].tokens[:7], batch_tokens=64), small


def test_windows_cover_the_text_once(fitness):
    found, _ = fitness
    assert found.windows(64) == [(0, 2), (2, 4), (4, 7)]
    assert found.windows(33) == found.windows(64), "whole sequences"
    assert found.windows(10**6) == [(0, 7)]


def test_losses_of_windows_are_those_of_their_sequences(fitness):
    found, small = fitness
    last = found.kl_on([small], (4, 7))[0]
    assert found.losses(small) == [], "the first sequence isn't known yet"
    middle = found.kl_on([small], (2, 4))[0]
    whole = found.kl(small, 7 * 32)
    assert found.evaluations == 3
    first = found.kl_on([small], (0, 2))[0]
    assert found.evaluations == 3, "known from the whole"
    assert whole == pytest.approx((2 * first + 2 * middle + 3 * last) / 7, rel=1e-12)
    assert len(found.losses(small)) == 7
    fresh = Fitness(found.placed, found.tokens, batch_tokens=64)
    assert fresh.kl(small, 7 * 32) == pytest.approx(whole, rel=1e-9)
