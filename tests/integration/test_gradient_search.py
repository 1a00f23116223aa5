"""Search with gradients: it lowers the loss, keeps the budget, shrinks its steps, and resumes."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny.searching import placed_in, searched, state_of, timeless, within_budget
from tests.tiny.stages import result, run_stages

from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.evolve.state import SearchState
from darwinlm.search.problem.knapsack import solve_knapsack

SETTINGS = ("search.generations=6", "search.rounds=[{tokens: 64, survivors: 2}, {tokens: 256, survivors: 1}]")
"""Windows of two sequences, four of them."""


@pytest.fixture(scope="module")
def finished(finished_llama, tiny_llama, make_run, tmp_path_factory):
    folder = Path(shutil.copytree(finished_llama, tmp_path_factory.mktemp("finished") / "out"))
    return searched(make_run(tiny_llama, folder, *SETTINGS)), folder


def test_a_generation_that_moves_lowers_the_loss(finished):
    found, _ = finished
    history = found.search.record["history"]
    assert any(entry["improved"] for entry in history)
    for before, after in itertools.pairwise(history):
        assert after["improved"] == (after["moved"] > 0)
        assert after["kl"] < before["kl"] if after["improved"] else after["kl"] == before["kl"]
        assert after["evaluations"] > before["evaluations"]
    assert found.search.record["start_kl"] == history[0]["kl"] > found.search.record["kl"] == history[-1]["kl"]


def test_every_child_keeps_the_budget_and_is_new(finished):
    found, folder = finished
    seen = [tuple(each) for each in state_of(folder)["seen"]]
    assert len(seen) > 4
    assert len(set(seen)) == len(seen)
    assert all(within_budget(found.plan, each) for each in seen)


def test_an_interrupted_search_ends_where_an_uninterrupted_one_does(
    finished, finished_copy, tiny_llama, make_run, monkeypatch
):
    save, saved = SearchState.save, []

    def interrupted(self, path):
        save(self, path)
        saved.append(path)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(SearchState, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_stages(make_run(tiny_llama, finished_copy, *SETTINGS), "search")
    assert state_of(finished_copy)["done"] == 2
    monkeypatch.setattr(SearchState, "save", save)
    run_stages(make_run(tiny_llama, finished_copy, *SETTINGS), "search")
    assert timeless(state_of(finished_copy)) == timeless(state_of(finished[1]))


@pytest.fixture
def fitness(finished_copy, tiny_llama, make_run):
    run = make_run(tiny_llama, finished_copy, *SETTINGS)
    plan, (placed, texts) = result(run, "plan"), placed_in(run, torch.float64)
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
