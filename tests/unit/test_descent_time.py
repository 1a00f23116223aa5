"""How long a descent goes on under a bound of time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from darwinlm.search.evolve import descent
from darwinlm.search.evolve.descent import Step, descend

START = (1, 1)


class Fitness:
    n_sequences = 4
    evaluations = 0

    def windows(self, tokens):
        return [(0, 2), (2, 4)]

    def set_base(self, allocation):
        pass

    def kl_on(self, allocations, window):
        return [1.0 for _ in allocations]


@pytest.mark.parametrize(
    ("bound", "steps"),
    [(0.0, 1), (9.0, 1), (19.0, 1), (20.5, 6), (24.5, 8)],
)
def test_a_step_is_begun_while_the_time_of_the_last_one_is_left(tmp_path, monkeypatch, bound, steps):
    """Ten seconds for the first step, two for each later one."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(descent, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def step(state, *_):
        clock.now += 2.0 if state.steps else 10.0
        state.steps.append(Step(1, -0.1, -0.1, len(state.steps) + 1, 0.0))

    monkeypatch.setattr(descent, "_step", step)
    slope = SimpleNamespace(cost=SimpleNamespace(costs=[[0, 1], [0, 1]]))
    found = descend(
        Fitness(), slope, START, tmp_path / "descent.json", n_steps=20, tokens=8, left=lambda: bound - clock.now
    )
    assert found.ended == "time is up"
    assert len(found.steps) == steps
    assert all(each.seconds <= max(bound, 10.0) for each in found.steps)
