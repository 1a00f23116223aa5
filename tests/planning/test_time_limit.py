"""A time limit chooses one of three amounts of text, and ends search and recovery."""

import re
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.pipeline import STEPS
from darwinlm.planning.run_plan import rows_of
from darwinlm.planning.speeds import PassSpeed
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.recipe.presets import AMOUNTS
from darwinlm.report import wording
from darwinlm.runs import amount as limits
from darwinlm.runs.amount import FIXED, fitted
from darwinlm.runtime.artifact import STAGES
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.figures import StageTime, TimeFigures
from darwinlm.runtime.time_limit import TimeLimit
from darwinlm.steps.run_sizes import RunSizes

CPU = torch.device("cpu")
ENDING = frozenset({"search", "recover"})
PLANNED = {"text": 0.0, "gradients": 10.0, "database": 30.0, "search": 60.0, "stitch": 2.0, "refit": 18.0}
PLANNED |= {"recover": 20.0, "export": 0.0, "chats": 12.0, "evaluate": 18.0}


def fixed_operations(recipe: Recipe) -> float:
    rows = rows_of(STEPS, RunSizes(Checkpoint.describe(Path(str(recipe.model))), recipe), on_cpu=True, memory=1e12)
    return sum(row.cost.operations for row in rows if row.step not in ENDING)


@pytest.fixture
def chosen(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The recipe of a run of a minute, on a machine on which the stages of a preset take a share of it."""

    def choose(share: float, preset: str, *assignments: str, folder: Path = tmp_path) -> Recipe:
        recipe = load_recipe(None, ("time=1m", *assignments), {"model": str(tiny_llama), "text.source": "text"})
        work = fixed_operations(load_recipe(recipe, (), {"preset": preset}))
        monkeypatch.setattr(limits, "measure_speed", lambda *_: PassSpeed(work / (60 * share)))
        return fitted(recipe, folder, CPU, working_time())[0]

    return choose


@pytest.mark.parametrize("preset", AMOUNTS)
def test_the_largest_amount_that_leaves_time_to_the_search(chosen, preset: str) -> None:
    recipe = chosen(0.99 * FIXED, preset)
    assert recipe == load_recipe(recipe, (), {"preset": preset})
    assert recipe.preset == preset


def test_no_time_is_too_short(chosen) -> None:
    assert chosen(1000.0, "quick").preset == "quick"


def test_what_the_user_gave_stays(chosen) -> None:
    recipe = chosen(0.99 * FIXED, "quick", "search.generations=7", "refit.tokens=0")
    assert (recipe.preset, recipe.search.generations, recipe.refit.tokens) == ("quick", 7, 0)
    assert recipe.text.calibration_tokens == 16384
    assert chosen(1000.0, "thorough", "preset=thorough").text.calibration_tokens == 131_072
    assert chosen(0.01, "paper", "preset=paper").preset == "paper"


def test_a_resumed_run_keeps_its_amount(chosen, tmp_path: Path) -> None:
    assert chosen(0.99 * FIXED, "default").preset == "default"
    assert chosen(1000.0, "quick").preset == "default", "the machine is slower now"
    assert chosen(1000.0, "quick", folder=tmp_path / "other").preset == "quick"
    assert chosen(1000.0, "quick", "preset=thorough").preset == "thorough"


@pytest.mark.parametrize("content", ["[]", "null", "5", "{"])
def test_a_damaged_record_is_told(chosen, tmp_path: Path, content: str) -> None:
    chosen(0.99 * FIXED, "quick")
    (tmp_path / STAGES / limits.FILE).write_text(content)
    with pytest.raises(ArtifactError, match=r"time_limit\.json is damaged"):
        chosen(0.99 * FIXED, "quick")


def test_without_a_limit_nothing_is_measured(tiny_llama: Path, tmp_path: Path) -> None:
    recipe = load_recipe(None, SETTINGS, {"model": str(tiny_llama)})
    assert fitted(recipe, tmp_path, CPU, 0.0) == (recipe, None)
    assert not any(tmp_path.iterdir())


def left(stage: str, *done: tuple[str, float], used: float = 40.0, planned: dict[str, float] = PLANNED) -> float:
    times = [StageTime(name, seconds, reused=False) for name, seconds in done]
    return TimeLimit(300.0, working_time() - used, planned, ENDING, "default").left(stage, times)


def test_the_search_leaves_their_time_to_later_stages() -> None:
    room = 300 - 40 - (2 + 18 + 12 + 18)
    assert left("search", ("gradients", 10.0), ("database", 30.0)) == pytest.approx(room * 60 / 80, abs=0.1)
    alone = {name: seconds for name, seconds in PLANNED.items() if name != "recover"}
    assert left("search", planned=alone) == pytest.approx(room, abs=0.1)
    assert left("recover", used=200.0) == pytest.approx(300 - 200 - (12 + 18), abs=0.1)


def test_a_run_that_was_slower_than_planned_leaves_more_to_them() -> None:
    """Stages that were reused say nothing about the speed."""
    slow = left("search", ("gradients", 30.0), ("database", 90.0), used=120.0)
    assert slow == pytest.approx((300 - 120 - 3 * (2 + 18 + 12 + 18)) * 60 / 80, abs=0.1)
    limit = TimeLimit(300.0, working_time() - 40, PLANNED, ENDING, "default")
    assert limit.left("search", [StageTime("database", 900.0, reused=True)]) == pytest.approx(left("search"), abs=0.1)
    assert left("search", used=500.0) == 0


def test_sizes_share_what_is_left() -> None:
    limit = TimeLimit(300.0, working_time() - 100, PLANNED, ENDING, "default")
    assert limit.part(2).seconds == pytest.approx(200, abs=0.1)
    assert limit.part(1).seconds == pytest.approx(300, abs=0.1)


def test_a_limited_run_ends_in_time_and_says_so(command, tiny_llama, tiny_text_file, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = (each for each in SETTINGS if not each.startswith("search."))
    more = ("search.generations=100000", "recovery.tokens=100000", "recovery.epochs=1000")
    common = ("prune", tiny_llama, "--out", out, "--text", tiny_text_file, *sets((*small, *more)), "--time", "12s")
    begun = working_time()
    ended = command(*common).succeeded()
    assert working_time() - begun < 24
    assert "planned: 12.0 s at most if nothing else runs, with the amounts of the preset thorough" in ended.out
    assert re.search(r"Time limit: [\d.]+ s of 12.0 s used, with the amounts of `thorough`", ended.out)
    assert "with the amounts of `thorough`" in (out / "report.html").read_text()
    assert command(*common).succeeded().out.count("already done, reused") > 8


def test_the_sentence_of_a_limit() -> None:
    said = wording.time_limit(TimeFigures(limit=180, seconds=170, preset="quick"))
    assert said == "Time limit: 2 min 50 s of 3 min used, with the amounts of `quick`."
