"""A time limit holds on a simulated machine, also on one that gets slower, and says what it shortened."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS

from darwinlm.execution.run import Run
from darwinlm.needs.need import Rates
from darwinlm.needs.sizes import Sizes
from darwinlm.pipeline import PRUNE
from darwinlm.planning import time_limit
from darwinlm.planning.devices import find_device
from darwinlm.planning.plan import estimate
from darwinlm.planning.time_limit import AMOUNTS, FILE, TimeLimit, differences, is_scarce, shortened
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.report import wording
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.figures import TimeFigures
from darwinlm.stages.model import DENSE

MUCH = ("recovery.tokens=8192", "recovery.batch_tokens=128", "search.generations=40")
RATES = dict.fromkeys((*find_device("h100").peak_rates("float32").by_kind, "disk", "hashing", "tokenising"), 1e6)


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Simulated(dict[Any, float]):
    """A machine with given rates, that is at present slower."""

    device, slower = torch.device("cpu"), 1.0

    def slowdown(self) -> float:
        return self.slower


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model is useful after little text."""
    least = {name: tuple((field, 64, words) for field, _, words in rows) for name, rows in AMOUNTS.items()}
    monkeypatch.setattr(time_limit, "AMOUNTS", least)
    monkeypatch.setattr(time_limit, "ROUND_TOKENS", 64)


def planned(run: Run, recipe: Recipe) -> dict[str, float]:
    needs = estimate(Sizes(run[DENSE], recipe), find_device("cpu"))
    return {need.name: need.seconds(Rates(RATES)) for need in needs}


def whole_time(run: Run) -> float:
    """Seconds with all of the text and one generation of the search."""
    return sum(planned(run, load_recipe(run.asked, ["search.generations=1"], {})).values())


class Simulation:
    """Runs whose stages take their planned time on a simulated machine, by a simulated clock."""

    def __init__(self, seconds: float, runs: int = 1) -> None:
        self.clock, self.machine = Clock(), Simulated(RATES)
        self.limit = TimeLimit(seconds, runs=runs, clock=self.clock, machine=lambda *_: self.machine)

    def run(self, run: Run, *, slower: float = 1.0, finished: bool = False, first: str = "text") -> float:
        """Move the clock through all stages, `slower` from the search on; returns its time."""
        for stage in PRUNE.steps[PRUNE.steps.index(first) :]:
            self.machine.slower = slower if stage == "search" else self.machine.slower
            run._assignments += self.limit.before(stage, run)
            taken = self.machine.slower * planned(run, run.recipe).get(stage, 0.0)
            bound = {"search": run.recipe.search.minutes, "recover": run.recipe.recovery.minutes}.get(stage)
            if stage == "evaluate" and (ends := self.limit.ends()) is not None:
                bound = max(ends - self.clock.now, 0.0) / 60
            if not finished:
                self.clock.now += taken if bound is None else min(taken, 60 * bound)
        return self.clock.now


@pytest.mark.parametrize(("part", "slower"), [(0.5, 1.0), (0.9, 1.0), (0.9, 1.5)])
def test_most_of_the_time_is_used_and_no_more(part, slower, make_run, tiny_llama, tmp_path) -> None:
    run = make_run(tiny_llama, tmp_path / "run", *MUCH)
    limit = part * whole_time(run)
    assert 0.5 * limit < Simulation(limit).run(run, slower=slower) <= 1.02 * limit
    assert list(differences(run.asked, run.recipe))
    assert not is_scarce(run.asked, run.recipe)


def test_enough_time_changes_nothing(make_run, tiny_llama, tmp_path) -> None:
    run = make_run(tiny_llama, tmp_path / "run")
    Simulation(100 * whole_time(run)).run(run)
    assert load_recipe(run.recipe, ["search.minutes=null", "recovery.minutes=null"], {}) == run.asked


def test_too_little_time_is_refused_before_any_work(make_run, tiny_llama, tmp_path) -> None:
    run = make_run(tiny_llama, tmp_path / "run", *MUCH)
    short = Simulation(0.01 * whole_time(run))
    with pytest.raises(
        RecipeError, match=r"time: .* too short for a useful model .* about (.*): .* --time (\d+)m"
    ) as error:
        short.limit.before("text", run)
    assert not (tmp_path / "run" / "stages").exists()
    minutes = int(str(error.value).partition("--time ")[2].partition("m")[0])
    again = make_run(tiny_llama, tmp_path / "again", *MUCH)
    assert Simulation(60 * minutes).run(again) <= 60 * minutes
    assert not is_scarce(again.asked, again.recipe)


def test_the_best_effort_goes_on_and_is_marked(make_run, tiny_llama, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(time_limit, "SCARCE", 0.5)
    run = make_run(tiny_llama, tmp_path / "run", *MUCH, "best_effort=true")
    Simulation(0.01 * whole_time(run)).run(run)
    assert run.recipe.recovery.tokens == run.recipe.refit.tokens == 0
    monkeypatch.setattr(time_limit, "ROUND_TOKENS", 256)
    assert is_scarce(run.asked, run.recipe)
    figures = TimeFigures(limit=180, seconds=170, too_short=True)
    assert "too little for a useful model" in wording.time_limit(figures)
    assert "useful" not in wording.time_limit(TimeFigures(limit=180, seconds=170))


def test_an_interrupted_run_goes_on_with_its_settings(make_run, tiny_llama, tmp_path) -> None:
    run = make_run(tiny_llama, tmp_path / "run", *MUCH)
    limit = 0.5 * whole_time(run)
    first = Simulation(limit)
    used = first.run(run)
    taken = run.recipe
    run._lock = None
    again, second = make_run(tiny_llama, tmp_path / "run", *MUCH), Simulation(limit)
    second.run(again, slower=50.0, finished=True)
    assert again.recipe == taken
    assert 0.5 * used < second.limit.used <= limit
    assert (tmp_path / "run" / "stages" / FILE).exists()


def test_a_sweep_shares_the_limit_and_the_database(make_run, tiny_llama, tmp_path) -> None:
    runs = [make_run(tiny_llama, tmp_path / name, *MUCH, keep=keep) for name, keep in (("a", "60%"), ("b", "50%"))]
    limit = 1.2 * whole_time(runs[0])
    both = Simulation(limit, runs=2)
    first = both.run(runs[0])
    runs[1]._assignments += [each for each in runs[0]._assignments if "calibration" in each]
    whole = both.run(runs[1], first="search")
    assert 0.3 * limit < first < 0.8 * limit
    assert 0.6 * limit < whole <= limit
    assert runs[0].recipe.text.calibration_tokens == runs[1].recipe.text.calibration_tokens


def test_every_part_is_lowered_and_none_below_its_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "AMOUNTS", AMOUNTS)
    recipe = load_recipe(None, ["recovery.tokens=1M"])
    for share in (1.0, 0.5, 0.1, 0.001, 0.0):
        for stage in AMOUNTS:
            merged = load_recipe(recipe, time_limit._assignments(shortened(recipe, share, stage)), {})
            assert bool(list(differences(recipe, merged))) == (merged != recipe)
            assert not is_scarce(recipe, merged)
    assert shortened(recipe, 0.5, "database") == {"text.calibration_tokens": 32768}
    assert shortened(recipe, 0, "database", 0.125) == {"text.calibration_tokens": 1024}
    assert shortened(recipe, 0.1, "refit") == {"refit.tokens": 0}
    assert shortened(recipe, 0.01, "recover")["recovery.tokens"] == 10000 // 512 * 512
    assert shortened(recipe, 0.001, "recover") == {"recovery.tokens": 0}


def test_a_limited_run_says_what_it_shortened(command, tiny_llama, tiny_text_file, tmp_path: Path, monkeypatch) -> None:
    """A real run on a machine that claims to be slow."""
    monkeypatch.setattr(time_limit.Machine, "__getitem__", lambda *_: 1e6)
    monkeypatch.setattr(time_limit.Machine, "slowdown", lambda _: 3.0)
    out = tmp_path / "out of time"
    more = [word for each in (*SETTINGS, *MUCH) for word in ("--set", each)]
    common = ("prune", tiny_llama, "--out", out, "--text", tiny_text_file, *more)
    command(*common, "--time", "1s").refused("too short for a useful model", "--best-effort")
    ended = command(*common, "--time", "10m", "--best-effort").succeeded()
    for words in ("time limit: ", "Time limit: ", "To save time: "):
        assert words in ended.out
    assert "10 min used" in (out / "report.html").read_text()
