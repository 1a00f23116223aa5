"""Search with gradients: it lowers the loss, keeps the budget, shrinks its steps, and resumes."""

import itertools
import shutil
from pathlib import Path

import pytest
from tests.tiny.searching import searched, state_of, timeless, within_budget
from tests.tiny.stages import run_stages

from darwinlm.search.state import SearchState

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
