"""A time limit holds on a machine that gets slower, and says what it shortened."""

import pytest

from darwinlm.planning import time_limit
from darwinlm.planning.devices import find_device
from darwinlm.planning.time_limit import differences, shortened
from darwinlm.recipe import load_recipe

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
