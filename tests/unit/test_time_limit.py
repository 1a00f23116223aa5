"""A time limit holds on a machine that gets slower, and says what it shortened."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets

from darwinlm.execution.run import Run
from darwinlm.pipeline import STAGES, run_stages
from darwinlm.planning import time_limit
from darwinlm.planning.devices import find_device
from darwinlm.planning.model import Sizes
from darwinlm.planning.plan import estimate
from darwinlm.planning.time_limit import FILE, TimeLimit, differences, shortened
from darwinlm.recipe import load_recipe
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.figures import StageTime
from darwinlm.stages.model import DENSE
from darwinlm.stages.text import TEXT

TRAINING = ("recovery.tokens=2048", "recovery.batch_tokens=128", "search.generations=40")


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of a card in place of measurements of this processor."""
    monkeypatch.setattr(time_limit, "_device", lambda run: find_device("rtx3090"))


def planned(run: Run) -> dict[str, float]:
    """Seconds of every stage with the run's settings."""
    found: dict[str, float] = {}
    for need in estimate(Sizes(run[DENSE], run.recipe), find_device("rtx3090")):
        name = "database" if need.name == "saliency" else need.name
        found[name] = found.get(name, 0.0) + need.unbounded_seconds
    return found


def simulate(
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    seconds: float,
    slower: Callable[[str], float],
    *,
    drift: float = 1.0,
    limit: TimeLimit | None = None,
) -> float:
    """Run the stages on the clock alone; returns the duration.

    Args:
        monkeypatch: Sets the measurement of passes.
        run: A new run.
        seconds: The limit.
        slower: How much slower than planned the machine is at the beginning of a stage.
        drift: How much slower it gets once a stage has begun.
        limit: The limit, if it is shared by several runs; the database of later ones is finished.
    """
    results, later = SimpleNamespace(), limit is not None and limit.asked is not None
    limit = limit or TimeLimit(seconds, clock=Clock())
    clock = limit.clock
    assert isinstance(clock, Clock)
    results.text = run[TEXT]
    for stage in STAGES[2:]:
        monkeypatch.setattr(limit, "_of_passes", lambda *_, at=stage: slower(at))
        limit.before(stage, run, results)
        if later and stage == "database":
            continue
        taken = drift * slower(stage) * planned(run).get(stage, 0.0)
        bound = {"search": run.recipe.search.minutes, "recover": run.recipe.recovery.minutes}.get(stage)
        if stage == "evaluate" and run.evaluation_ends is not None:
            bound = max(run.evaluation_ends - clock.now, 0.0) / 60
        clock.now += taken if bound is None else min(taken, 60 * bound)
        run.times.append(StageTime(stage, taken, reused=False))
    return clock.now


@pytest.mark.parametrize(
    ("part", "later", "drift", "most"),
    [(0.4, 1.0, 1.0, 1.0), (0.8, 1.0, 1.0, 1.0), (0.7, 3.0, 1.0, 1.1), (0.8, 1.0, 1.5, 1.1)],
)
def test_most_of_the_time_is_used_and_no_more(
    part, later, drift, most, card, monkeypatch, make_run, tiny_llama, tmp_path
):
    """Also by a machine that gets slower and by one that is slower than its plan."""
    run = make_run(tiny_llama, tmp_path / "run", *TRAINING)
    limit = part * sum(planned(run).values())
    first = ("database", "search")
    used = simulate(monkeypatch, run, limit, lambda stage: 1.0 if stage in first else later, drift=drift)
    assert 0.6 * limit < used <= most * limit
    assert run.time.limit == limit
    assert any(words.startswith(("evaluation text", "no recovery")) for words in run.time.shortened) or later == 1


def test_a_sweep_shares_the_limit(card, monkeypatch, make_run, tiny_llama, tmp_path) -> None:
    runs = [make_run(tiny_llama, tmp_path / name, *TRAINING, keep=keep) for name, keep in (("a", "60%"), ("b", "50%"))]
    for run in runs:
        run.shared = tmp_path / "shared"
    seconds = 1.2 * sum(planned(runs[0]).values())
    limit = TimeLimit(seconds, runs=2, clock=Clock())
    first = simulate(monkeypatch, runs[0], seconds, lambda stage: 1.0, limit=limit)
    whole = simulate(monkeypatch, runs[1], seconds, lambda stage: 1.0, limit=limit)
    assert 0.3 * seconds < first < 0.75 * seconds
    assert 0.6 * seconds < whole <= seconds
    assert runs[0].recipe.text == runs[1].recipe.text.model_copy(
        update={name: getattr(runs[0].recipe.text, name) for name in ("validation_tokens", "evaluation_tokens")}
    )


def test_enough_time_changes_nothing(card, monkeypatch, make_run, tiny_llama, tmp_path) -> None:
    run = make_run(tiny_llama, tmp_path / "run")
    before = run.recipe
    simulate(monkeypatch, run, 100.0, lambda stage: 1.0)
    unlimited = {"search": {"minutes": None}, "recovery": {"minutes": None}}
    assert load_recipe(run.recipe, [f"{a}.{b}=null" for a in unlimited for b in unlimited[a]], {}) == before
    assert run.time is not None
    assert run.time.shortened == ()


def test_too_little_time_is_refused_before_the_work(card, make_run, tiny_llama, tmp_path) -> None:
    run = make_run(tiny_llama, tmp_path / "run", "time=0.0001s")
    with pytest.raises(
        RecipeError, match=r"time: 0\.0001 s is too short .* with the least text it takes about .* give"
    ):
        run_stages(run, "report")
    assert not (tmp_path / "run" / "stages" / "database").exists()


def test_a_limit_that_is_a_little_short_leaves_parts_out(card, monkeypatch, make_run, tiny_llama, tmp_path) -> None:
    """The run says so before its work, and does the least instead of ending without a model."""
    run = make_run(tiny_llama, tmp_path / "run", *TRAINING)
    said: list[str] = []
    monkeypatch.setattr(run.context.reporter, "say", said.append)
    simulate(monkeypatch, run, 0.1 * sum(planned(run).values()), lambda stage: 1.0)
    (expected,) = (line for line in said if line.startswith("this takes about"))
    assert "with the least text (time limit" in expected
    assert "which can't be kept" in expected
    assert [line.rpartition(", ")[2] for line in said if ", no " in line] == ["no refit", "no recovery"]
    assert run.recipe.recovery.tokens == run.recipe.refit.tokens == 0
    assert run.time is not None
    assert run.time.shortened[:2] == ("no refit", "no recovery")


def test_an_interrupted_run_goes_on_with_its_settings(card, monkeypatch, make_run, tiny_llama, tmp_path) -> None:
    run = make_run(tiny_llama, tmp_path / "run", *TRAINING)
    limit = 0.5 * sum(planned(run).values())
    used = simulate(monkeypatch, run, limit, lambda stage: 1.0)
    taken, first = run.recipe, run.time
    run.lock = None
    again = make_run(tiny_llama, tmp_path / "run", *TRAINING)
    simulate(monkeypatch, again, limit, lambda stage: 5.0)
    assert again.recipe == taken
    assert again.time is not None
    assert first is not None
    assert again.time.seconds >= min(used, first.seconds)
    other = make_run(tiny_llama, tmp_path / "other", *TRAINING)
    (tmp_path / "other" / "stages").mkdir(parents=True, exist_ok=True)
    (tmp_path / "other" / "stages" / FILE).write_text((tmp_path / "run" / "stages" / FILE).read_text())
    simulate(monkeypatch, other, limit, lambda stage: 1.0)
    assert other.recipe == taken


def test_every_part_is_lowered_and_none_below_its_least() -> None:
    recipe = load_recipe(None, ["recovery.tokens=1M"])
    for share in (1.0, 0.5, 0.1, 0.001):
        for stage in time_limit.STAGES:
            settings = shortened(recipe, share, stage)
            assert share < 1 or settings == {}
            merged = load_recipe(recipe, time_limit._assignments(settings), {})
            lowered = list(differences(recipe, merged))
            assert bool(lowered) == bool(settings)
    half = shortened(recipe, 0.5, "database")
    assert half == {"text.calibration_tokens": 32768}
    assert shortened(recipe, 0.1, "refit") == {"refit.tokens": 0}
    assert shortened(recipe, 0.01, "recover")["recovery.tokens"] == 10000 // 512 * 512
    assert shortened(recipe, 0.001, "recover") == {"recovery.tokens": 0}


def test_rounds_have_no_time_limit() -> None:
    with pytest.raises(RecipeError, match="time: it can't be limited with rounds"):
        load_recipe(None, ["rounds=[0.8,0.5]", "time=1h"])


def test_a_limited_run_says_what_it_shortened(
    command, card, make_run, tiny_llama, tiny_text_file, tmp_path, monkeypatch
):
    """A real run, with a machine that claims to be slow."""
    much = ("recovery.tokens=16384", "recovery.batch_tokens=128")
    probe = make_run(tiny_llama, tmp_path / "probe", *much)
    times = 600 / (0.8 * sum(planned(probe).values()))
    monkeypatch.setattr(TimeLimit, "_of_passes", lambda *_: times)
    out = tmp_path / "out of time"
    common = ("prune", tiny_llama, "--out", out, "--text", tiny_text_file, "--time", "10m")
    ended = command(*common, *sets((*SETTINGS, *much))).succeeded()
    for words in ("time limit: ", "Time limit: ", "calibration text "):
        assert words in ended.out
    assert "10 min 0 s used" in (out / "report.html").read_text()
    assert f"darwinlm show '{out}'" in ended.out
