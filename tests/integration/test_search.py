"""The search bounded in time, given bad state, few allocations or candidates that overflow."""

import io
import json
import math

import pytest
from rich.console import Console
from tests.tiny.searching import searched, state_of, within_budget
from tests.tiny.stages import run_stages

from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError
from darwinlm.search.fitness import Fitness


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

    def slow(self, piece, hidden):
        if math.isfinite(self.clock.limit):
            ticks.append(piece)
            self.clock.before += 60
        return losses(self, piece, hidden)

    monkeypatch.setattr(Fitness, "_losses", slow)
    found = searched(make_run(tiny_llama, finished_copy, "search.minutes=2m", "search.generations=9"))
    record = found.search.record
    assert record["ended"] == "time is up"
    assert len(ticks) == 2, "the second minute ends it, in the middle of a generation"
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
