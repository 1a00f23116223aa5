"""The search: gradients, estimates of the database, resuming, a time limit, bad state, few allocations."""

import io
import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from tests.tiny.stages import run_stages
from tests.tiny.whole import searched, state_of, timeless, within_budget

from darwinlm.runtime.artifact import read_json, read_tensors
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.state import SearchState


@pytest.fixture
def interrupted(finished_copy):
    """A run whose search has its state and no result."""
    for name in ("manifest.json", "result.json"):
        (finished_copy / "stages" / "search" / name).unlink()
    return finished_copy


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda tree: "{", "is damaged"),
        (lambda tree: [1], "it holds something else"),
        (lambda tree: {**tree, "parent": [0, 1]}, "state of another search"),
        (lambda tree: {**tree, "parent": [99] * 8}, "state of another search"),
        (lambda tree: {**tree, "done": 99}, "state of another search"),
        (lambda tree: {**tree, "kl": None}, "it holds something else"),
        (lambda tree: {**tree, "slopes": [[0.0]] * 8}, "state of another search"),
        (lambda tree: {**tree, "misses": -1}, "state of another search"),
    ],
)
def test_a_damaged_state_is_refused_with_what_to_do(interrupted, tiny_llama, make_run, spoil, said):
    path = interrupted / "stages" / "search" / "evolution.json"
    spoilt = spoil(read_json(path))
    path.write_text(spoilt if isinstance(spoilt, str) else json.dumps(spoilt))
    with pytest.raises(ArtifactError, match=f"{said}.*delete the folder .*search and rerun the same command"):
        run_stages(make_run(tiny_llama, interrupted), "search")


def test_what_is_begun_is_left_when_time_is_up(finished_copy, tiny_llama, make_run, monkeypatch):
    """Every evaluation of a generation takes a minute, by the search's own clock."""
    losses, ticks = Fitness._losses, []

    def slow(self, piece, ends):
        if math.isfinite(self.clock.limit):
            ticks.append(piece)
            self.clock.before += 60
        return losses(self, piece, ends)

    monkeypatch.setattr(Fitness, "_losses", slow)
    found = searched(make_run(tiny_llama, finished_copy, "search.minutes=1m", "search.generations=9"))
    record = found.search.record
    assert record["ended"] == "time is up"
    assert len(ticks) == 1, "the minute ends it, in the middle of a generation"
    assert len(record["history"]) == 1
    assert within_budget(found.plan, found.search.allocation)
    assert record["kl"] == record["start_kl"]


@pytest.mark.parametrize("method", ["gradient", "paper"])
def test_a_search_ends_with_its_best_where_nothing_new_is_left(finished_copy, tiny_llama, make_run, method):
    """Modules are whole or gone: there are few allocations."""
    settings = ("units.levels=[0, 1]", f"search.method={method}", "search.generations=1000", "budget.tolerance=10%")
    settings += ("search.seed=1",)
    said = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    found = searched(make_run(tiny_llama, finished_copy, *settings, reporter=Reporter(said)))
    assert found.search.record["ended"] == "every neighbour of the best allocation has been tried"
    assert "every neighbour of the best allocation has been tried" in said.export_text()
    assert within_budget(found.plan, found.search.allocation)
    assert len(found.search.record["history"]) < 1000


def test_the_papers_rules_trade_single_levels_between_equals(finished_copy, tiny_llama, make_run):
    settings = ("search.method=paper", "units.attention=kv_group", "budget.tolerance=0.1")
    plan = searched(make_run(tiny_llama, finished_copy, *settings)).plan
    seen = state_of(finished_copy)
    parent = tuple(seen["seen"][0])
    for kind in ("attention", "mlp"):
        totals = {
            sum(level for module, level in zip(plan.space.modules, each, strict=True) if module.kind == kind)
            for each in seen["seen"]
        }
        assert len(totals) == 1, "what one gives, another of its kind takes"
    children = [child for before, child, *_ in seen["observations"] if tuple(before) == parent]
    assert children
    for child in children:
        assert sum(abs(a - b) for a, b in zip(child, parent, strict=True)) <= 6


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


PLAIN = "database.metric=output"


@pytest.fixture(scope="module")
def estimated(tiny_llama, make_run, finished_llama):
    return searched(make_run(tiny_llama, finished_llama))


def test_what_is_gone_costs_the_whole_output_weighted_by_the_gradients(estimated):
    """tr(S W H Wᵀ) / 2, H from the factor that is stored."""
    database = estimated.database
    reader = database.reader
    for block in (0, 2):
        gradients = read_tensors(database.stage.folder.parent / "gradients" / f"block_{block:04d}.safetensors")
        for kind in ("attention", "mlp"):
            module = next(m for m in estimated.plan.space.modules if (m.block, m.kind) == (block, kind))
            last = reader.variant(block, kind, module.levels[-1])
            (factors,) = reader.factors(block, kind, last)
            T, S = factors.target.double(), gradients[kind].double()
            expected = float((T.T @ S @ T).trace()) / 2
            assert reader.loss(block, kind, module.levels[0]) == pytest.approx(expected, rel=1e-4)


def test_local_errors_stand_for_estimates_that_are_missing(tiny_llama, make_run, tmp_path):
    said = Console(record=True, file=io.StringIO(), width=200)
    found = searched(make_run(tiny_llama, tmp_path / "out", PLAIN, reporter=Reporter(said)))
    space, reader = found.plan.space, found.database.reader
    assert reader.estimated_losses(space) is None
    assert all(any(error > 0 for error in row) for row in reader.local_errors(space))
    assert (
        "the database has no estimated losses (database.metric=loss has), so local errors are used"
        in said.export_text()
    )
    assert found.search.record["kl"] <= found.search.record["start_kl"]
