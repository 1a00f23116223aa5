"""The search when it is killed, shared by processes, bounded in time, given bad state or candidates that overflow."""

from __future__ import annotations

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
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.killed import SEARCH

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
    found["record"].pop("seconds")
    for part in [*found["record"]["history"], *(found["record"]["descent"] or ())]:
        part.pop("seconds")
    return found


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
    assert one["record"]["finalists"]["candidates"][0]["kl_after"]


# ------------------------------------------------------------------------------------------------------ state and time


@pytest.fixture(scope="module")
def searched(tiny_llama, make_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched") / "out"
    run_stages(make_run(tiny_llama, folder), "search")
    return folder


@pytest.fixture
def interrupted(searched, tmp_path):
    """A run whose search has its state and no result."""
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
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
        ("search/descent.json", lambda tree: "{", "is damaged"),
        ("search/descent.json", lambda tree: json.dumps([1]), "doesn't hold the steps of a search"),
        ("search/descent.json", lambda tree: json.dumps({**tree, "parent": [99] * 8}), "steps of another search"),
        ("search/descent.json", lambda tree: json.dumps({**tree, "slopes": [[0.0]] * 8}), "steps of another search"),
        ("search/descent.json", lambda tree: json.dumps({**tree, "worth": "x"}), "doesn't hold the steps of a search"),
    ],
)
def test_a_damaged_state_is_refused_with_what_to_do(interrupted, tiny_llama, make_run, file, spoil, said):
    path = interrupted / "stages" / file
    path.write_text(spoil(json.loads(path.read_text())))
    with pytest.raises(ArtifactError, match=f"{said}.*delete the folder .*search and run the same command again"):
        run_stages(make_run(tiny_llama, interrupted), "search")


@pytest.mark.parametrize("text", ["[", "[1]", '{"0:77": 1.0}', '{"a": 1.0}', '{"0:1": "x"}'])
def test_damaged_scores_are_refused(interrupted, tiny_llama, make_run, text):
    folder = interrupted / "stages" / "scores"
    (folder / "manifest.json").unlink()
    (folder / "scores.json").write_text(text)
    with pytest.raises(ArtifactError, match="is damaged"):
        run_stages(make_run(tiny_llama, interrupted), "search")


def test_the_database_of_another_model_is_not_used(searched, tiny_folder, make_run, tmp_path):
    """Another model in the same folder redoes what depends on it."""
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    run_stages(make_run(tiny_folder("qwen3"), folder), "search")
    assert result(folder) != result(searched)


def test_scores_are_reused_by_another_budget_and_other_generations(searched, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    before = (folder / "stages" / "scores" / "manifest.json").stat().st_mtime_ns
    run = make_run(tiny_llama, folder, "search.generations=1", keep="50%")
    run_stages(run, "search")
    assert (folder / "stages" / "scores" / "manifest.json").stat().st_mtime_ns == before
    assert {"name": "scores", "reused": True} in [{k: t[k] for k in ("name", "reused")} for t in run.timings]


@pytest.mark.parametrize("start", ["ziplm", "uniform", "random"])
def test_other_starts_need_no_scores(searched, tiny_llama, make_run, tmp_path, start):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    shutil.rmtree(folder / "stages" / "scores")
    run = make_run(tiny_llama, folder, f"search.start={start}", "search.generations=1")
    found = run_stages(run, "search")
    assert not (folder / "stages" / "scores").exists()
    assert found.search.record["start"] == start
    plan = found.plan
    assert plan.budget.allows(plan.cost.of(found.search.allocation))


def test_the_ziplm_start_has_the_least_local_error(searched, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    settings = ("search.start=ziplm", "search.generations=1")
    found = run_stages(make_run(tiny_llama, folder, *settings), "search")
    reader, plan = found.database.reader, found.plan

    def error(allocation):
        levels = zip(plan.space.modules, plan.space.levels(allocation), strict=True)
        return sum(reader.error(module.block, module.kind, level) for module, level in levels)

    start = tuple(json.loads((folder / "stages" / "search" / "evolution.json").read_text())["seen"][0])
    assert error(start) <= error(found.search.uniform) + 1e-9


def test_a_second_look_measures_what_the_knapsack_chose(searched, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    run_stages(make_run(tiny_llama, folder, "search.score_adaptive=false", "search.generations=1"), "search")
    assert not (folder / "stages" / "search" / "scores.json").exists()
    run_stages(make_run(tiny_llama, folder, "search.generations=1"), "search")
    first = json.loads((folder / "stages" / "scores" / "scores.json").read_text())
    both = json.loads((folder / "stages" / "search" / "scores.json").read_text())
    assert first.items() < both.items()


def test_a_second_look_that_was_interrupted_counts_what_it_had_measured(searched, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    first = json.loads((folder / "stages" / "scores" / "scores.json").read_text())
    both = json.loads((folder / "stages" / "search" / "scores.json").read_text())
    assert len(both) > len(first) + 1
    for name in ("manifest.json", "result.json", "evolution.json"):
        (folder / "stages" / "search" / name).unlink()
    half = dict(list(both.items())[: (len(first) + len(both)) // 2])
    (folder / "stages" / "search" / "scores.json").write_text(json.dumps(half))
    run_stages(make_run(tiny_llama, folder), "search")
    assert result(folder) == result(searched)


def test_time_ends_the_search_with_its_best(searched, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    settings = ("search.minutes=3s", "search.generations=100000", "search.screen=false")
    found = run_stages(make_run(tiny_llama, folder, *settings), "search")
    record = found.search.record
    assert "time is up" in record["ended"] or "has been tried" in record["ended"]
    assert record["seconds"] < 4.5


def test_a_first_generation_that_takes_too_long_is_not_begun(searched, tiny_llama, make_run, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    measured = Fitness.kl_on

    def kl_on(self, allocations, window):  # as if every evaluation so far had taken a minute
        losses = measured(self, allocations, window)
        self.seconds = 60.0 * self.tokens_run / (self.n_sequences * self.sequence_length)
        return losses

    monkeypatch.setattr(Fitness, "kl_on", kl_on)
    settings = ("search.minutes=2m", "search.generations=9", "search.descent_steps=0")
    found = run_stages(make_run(tiny_llama, folder, *settings), "search")
    record = found.search.record
    assert record["ended"] == "time is up (2 minutes)"
    assert len(record["history"]) == 1
    assert record["seconds"] < 60


def test_the_papers_rules_trade_single_levels_between_equals(searched, tiny_llama, make_run, tmp_path):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    settings = (
        "search.trade=same_kind",
        "search.screen=false",
        "search.start=uniform",
        "units.attention=kv_group",
        "budget.tolerance=0.1",
    )
    found = run_stages(make_run(tiny_llama, folder, *settings), "search")
    plan = found.plan
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


def test_the_best_switches_of_a_generation_are_put_together(searched, tiny_llama, make_run, tmp_path):
    states = {}
    for joins in (0, 3):
        folder = Path(shutil.copytree(searched, tmp_path / str(joins)))
        settings = ("search.start=random", "search.generations=6", "search.offspring=8", "search.slope_tokens=0")
        settings = (*settings, f"search.recombine={joins}")
        run_stages(make_run(tiny_llama, folder, *settings), "search")
        states[joins] = json.loads((folder / "stages" / "search" / "evolution.json").read_text())
        result = json.loads((folder / "stages" / "search" / "result.json").read_text())
        judged = {tuple(child) for _, child, *_ in states[joins]["observations"]}
        assert tuple(result["allocation"]) in {tuple(each) for each in states[joins]["seen"]}
        assert judged <= {tuple(each) for each in states[joins]["seen"]}
    offspring = [len(states[joins]["seen"]) - 1 for joins in (0, 3)]
    assert offspring[0] == 48
    assert 48 < offspring[1] <= 48 + 18
    assert states[0]["observations"][:8] == states[3]["observations"][:8], "the first children are the same"


# ---------------------------------------------------------------------------------------------------- no finite values


def test_candidates_that_overflow_drop_out(searched, tiny_llama, make_run, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    measured = Fitness.kls
    spoilt = []

    def kls(self, allocations, n_tokens):
        losses = measured(self, allocations, n_tokens)
        if len(allocations) == 5:  # four children and their parent
            spoilt.append(allocations[0])
            losses[0] = math.inf
        return losses

    monkeypatch.setattr(Fitness, "kls", kls)
    settings = ("search.generations=2", "search.score_adaptive=false")
    found = run_stages(make_run(tiny_llama, folder, *settings), "search")
    assert len(spoilt) == 2
    assert found.search.allocation not in spoilt
    state = json.loads((folder / "stages" / "search" / "evolution.json").read_text())
    assert all(tuple(child) not in spoilt for _, child, *_ in state["observations"])


def test_a_start_that_overflows_is_refused(searched, tiny_llama, make_run, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(searched, tmp_path / "out"))
    monkeypatch.setattr(Fitness, "_run", lambda self, piece, inputs: [math.inf] * (piece[1] - piece[0]))
    with pytest.raises(NumericsError, match=r"aren't finite: try compute\.dtype=float32"):
        run_stages(make_run(tiny_llama, folder, "search.seed=0", "search.generations=9"), "search")
