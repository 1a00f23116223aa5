"""Times of modules from times of whole models: exact where times add up, and measured no more often than needed."""

from contextlib import nullcontext

import pytest

from darwinlm.recipe import BudgetSettings
from darwinlm.runtime.errors import BudgetError
from darwinlm.search.latency.measure import check_fastest
from darwinlm.search.latency.table import ABSENT, LatencyTable, lines_of
from darwinlm.search.latency.timing import ModelTimer


@pytest.mark.parametrize(
    ("bound", "message"),
    [
        ({"speedup": 3}, None),
        ({"speedup": 6}, "6x is out of reach: .* only 4.00x as fast"),
        ({"latency": "600ms"}, None),
        ({"latency": "400ms"}, "400 ms is out of reach: .* only as fast as 500 ms"),
        ({"keep": 0.5}, None),
    ],
)
def test_a_bound_that_no_model_reaches_is_refused_before_the_table(bound, message):
    with nullcontext() if message is None else pytest.raises(BudgetError, match=message):
        check_fastest(BudgetSettings(**bound), 0.25, 2.0)


def test_modules_take_their_share_of_the_models_time():
    ratios = {(1, 1, 10): 0.6, (1, 1, 20): 0.9, (1, 1, 30): 0.8, ABSENT: 0.5, (1, 2, 20): 1.0}
    lines = lines_of(ratios, {1: 4, 2: 4}, dense=8.0)
    assert dict(lines[1]) == pytest.approx({10: 0.2, 20: 0.8, 30: 0.8}), "a wider module never takes less"
    assert dict(lines[2]) == pytest.approx({20: 1.0})
    table = LatencyTable(seconds={"mlp": lines}, fixed=1.0)
    assert table.of("mlp", ABSENT) == 0
    assert table.of("mlp", (1, 1, 15)) == pytest.approx(0.5)
    assert table.of("mlp", (1, 1, 25)) == pytest.approx(0.8)


@pytest.mark.parametrize(("noise", "passes"), [((1.0, 1.0, 1.0), 3), ((1.0, 1.3, 0.7), 9)])
def test_a_busy_machine_is_timed_for_longer(monkeypatch, noise, passes):
    timer = ModelTimer.__new__(ModelTimer)
    timer.runs, timer._reference, timer._graphed = 3, "dense", {}
    timed = []

    def seconds(self, model):
        timed.append(model)
        return 2.0 if model == "dense" else 1.0 * noise[timed.count(model) % 3]

    monkeypatch.setattr(ModelTimer, "build", lambda self, choice: "small")
    monkeypatch.setattr(ModelTimer, "seconds", seconds)
    ratio, dense = timer.compare({}, {})
    assert (ratio, dense) == (0.5, 2.0)
    assert timed.count("dense") == passes
