"""The search when it is killed, shared by processes, bounded in time, given bad state or candidates that overflow."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint
from tests.tiny.killed import SEARCH
from tests.tiny.searching import searched, state_of, timeless

import darwinlm
from darwinlm import parallel
from darwinlm.console import Reporter
from darwinlm.errors import ArtifactError, NumericsError
from darwinlm.pipeline import run_stages
from darwinlm.recipe import load_recipe
from darwinlm.run import Run
from darwinlm.search.evaluate.fitness import Fitness

ROOT = Path(darwinlm.__file__).parents[2]


def result(folder):
    """What the search found, without what a clock says."""
    found = json.loads((folder / "stages" / "search" / "result.json").read_text())
    return found | {"record": timeless(found["record"])}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on POSIX systems only")
def test_a_search_killed_at_random_points_ends_bit_for_bit_the_same(tiny_llama, tiny_text_file, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    arguments = [str(part) for part in (tiny_llama, tiny_text_file, tmp_path, 3)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.tiny.killed", *arguments],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 2
    assert result(tmp_path / "killed") == result(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------- several processes


def _search_in_one_of_two(rank, place, model, text, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{place}", rank=rank, world_size=2, timeout=timedelta(seconds=100)
    )
    try:
        recipe = load_recipe(None, (*SETTINGS, *SEARCH), {"model": model, "text.source": text, "budget.keep": "60%"})
        run_stages(Run(recipe, Path(folder), Reporter(Console(quiet=True))), "search")
    finally:
        parallel.shutdown()


def test_two_processes_find_what_one_finds(tiny_llama, tiny_text_file, tmp_path):
    recipe = load_recipe(
        None, (*SETTINGS, *SEARCH), {"model": str(tiny_llama), "text.source": str(tiny_text_file), "budget.keep": "60%"}
    )
    run_stages(Run(recipe, tmp_path / "one", Reporter(Console(quiet=True))), "database")
    # Moments summed over two processes agree to rounding only, so both searches take the same database.
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    run_stages(Run(recipe, tmp_path / "one", Reporter(Console(quiet=True))), "search")
    arguments = (tmp_path / "meet", str(tiny_llama), str(tiny_text_file), str(tmp_path / "two"))
    mp.spawn(_search_in_one_of_two, args=arguments, nprocs=2)
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert two["allocation"] == one["allocation"]
    assert two["record"] == one["record"]


# ------------------------------------------------------------------------------------------------------ state and time


@pytest.fixture(scope="module")
def searched_folder(tiny_llama, make_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched") / "out"
    run_stages(make_run(tiny_llama, folder), "search")
    return folder


@pytest.fixture
def interrupted(searched_folder, tmp_path):
    """A run whose search has its state and no result."""
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    (folder / "stages" / "search" / "manifest.json").unlink()
    (folder / "stages" / "search" / "result.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("file", "spoil", "said"),
    [
        ("search/evolution.json", lambda tree: "{", "is damaged"),
        ("search/evolution.json", lambda tree: json.dumps([1]), "doesn't hold the state of a search"),
        ("search/evolution.json", lambda tree: json.dumps({**tree, "parent": [0, 1]}), "state of another search"),
        ("search/evolution.json", lambda tree: json.dumps({**tree, "parent": [99] * 8}), "state of another search"),
        ("search/evolution.json", lambda tree: json.dumps({**tree, "done": 99}), "state of another search"),
        ("search/evolution.json", lambda tree: json.dumps({**tree, "kl": None}), "doesn't hold the state of a search"),
        ("search/evolution.json", lambda tree: json.dumps({**tree, "slopes": [[0.0]] * 8}), "state of another search"),
        ("search/evolution.json", lambda tree: json.dumps({**tree, "misses": -1}), "state of another search"),
    ],
)
def test_a_damaged_state_is_refused_with_what_to_do(interrupted, tiny_llama, make_run, file, spoil, said):
    path = interrupted / "stages" / file
    path.write_text(spoil(json.loads(path.read_text())))
    with pytest.raises(ArtifactError, match=f"{said}.*delete the folder .*search and rerun the same command"):
        run_stages(make_run(tiny_llama, interrupted), "search")


def test_the_database_of_another_model_is_not_used(searched_folder, tiny_folder, make_run, tmp_path):
    """Another model in the same folder redoes what depends on it."""
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    run_stages(make_run(tiny_folder("qwen3"), folder), "search")
    assert result(folder) != result(searched_folder)


def test_time_ends_the_search_with_its_best(searched_folder, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    record = searched(make_run(tiny_llama, folder, "search.minutes=3s", "search.generations=100000")).search.record
    assert record["ended"] == "time is up" or "has been tried" in record["ended"]
    assert record["kl"] <= record["start_kl"]


def test_what_is_begun_is_left_when_time_is_up(searched_folder, tiny_llama, make_run, tmp_path, monkeypatch):
    """Every evaluation of a generation takes a minute, by the search's own clock."""
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    run_sequences, ticks = Fitness._run, []

    def slow(self, piece, inputs):
        if self.clock is not None:
            ticks.append(piece)
            self.clock.before += 60
        return run_sequences(self, piece, inputs)

    monkeypatch.setattr(Fitness, "_run", slow)
    found = searched(make_run(tiny_llama, folder, "search.minutes=2m", "search.generations=9"))
    record = found.search.record
    assert record["ended"] == "time is up"
    assert len(ticks) == 2, "the second minute ends it, in the middle of a generation"
    assert len(record["history"]) == 1
    assert found.plan.allows(found.search.allocation)
    assert record["kl"] == record["start_kl"]


def test_no_generation_is_begun_without_time(searched_folder, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    record = searched(make_run(tiny_llama, folder, "search.minutes=0.000001")).search.record
    assert record["ended"] == "time is up"
    assert len(record["history"]) == 1


# ---------------------------------------------------------------------------------------------------- small models


@pytest.mark.parametrize("method", ["gradient", "paper"])
def test_a_search_ends_with_its_best_where_nothing_new_is_left(searched_folder, tiny_llama, make_run, tmp_path, method):
    """Modules are whole or gone: there are few allocations."""
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    settings = ("units.levels=[0, 1]", f"search.method={method}", "search.generations=1000", "budget.tolerance=10%")
    said = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    found = searched(make_run(tiny_llama, folder, *settings, reporter=Reporter(said)))
    assert found.search.record["ended"] == "every neighbour of the best allocation has been tried"
    assert "every neighbour of the best allocation has been tried" in said.export_text()
    assert found.plan.allows(found.search.allocation)
    assert len(found.search.record["history"]) < 1000


@pytest.mark.parametrize("layers", [2, 6])
def test_a_level_may_be_larger_than_the_tolerance(tiny_text_file, tmp_path, layers):
    model = tiny_checkpoint(tmp_path / "model", num_hidden_layers=layers)
    settings = (*SETTINGS, "budget.tolerance=0.01%", "search.generations=2", "units.mlp_multiple=32")
    recipe = load_recipe(
        None, settings, {"model": str(model), "text.source": str(tiny_text_file), "budget.keep": "50%"}
    )
    found = searched(Run(recipe, tmp_path / "out", Reporter(Console(quiet=True))))
    problem = found.plan
    assert problem.budget.upper - problem.budget.lower == problem.cost.finest_step
    assert problem.allows(found.search.allocation)


# ---------------------------------------------------------------------------------------------------- the paper's rules


def test_the_papers_rules_trade_single_levels_between_equals(searched_folder, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    settings = (
        "search.method=paper",
        "units.attention=kv_group",
        "budget.tolerance=0.1",
    )
    plan = searched(make_run(tiny_llama, folder, *settings)).plan
    seen = json.loads((folder / "stages" / "search" / "evolution.json").read_text())
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


# ---------------------------------------------------------------------------------------------------- no finite values


@pytest.mark.parametrize("method", ["gradient", "paper"])
def test_candidates_that_overflow_drop_out(searched_folder, tiny_llama, make_run, tmp_path, monkeypatch, method):
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    measured, known, spoilt = Fitness.kl_on, set(), set()

    def kl_on(self, allocations, window):
        losses = measured(self, allocations, window)
        if self.clock is not None:  # the parent comes first; one of the new children overflows at once
            spoilt.update([each for each in allocations[1:] if each not in known][:1])
            known.update(allocations)
        return [math.inf if each in spoilt else loss for each, loss in zip(allocations, losses, strict=True)]

    monkeypatch.setattr(Fitness, "kl_on", kl_on)
    found = searched(make_run(tiny_llama, folder, "search.generations=2", f"search.method={method}"))
    assert spoilt
    assert found.search.allocation not in spoilt
    assert all(tuple(child) not in spoilt for _, child, *_ in state_of(folder)["observations"])


def test_a_start_that_overflows_is_refused(searched_folder, tiny_llama, make_run, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(searched_folder, tmp_path / "out"))
    monkeypatch.setattr(Fitness, "_run", lambda self, piece, inputs: [math.inf] * (piece[1] - piece[0]))
    with pytest.raises(NumericsError, match=r"aren't finite: try compute\.dtype=float32"):
        run_stages(make_run(tiny_llama, folder, "search.seed=0", "search.generations=9"), "search")
