"""The line of progress: figures, rates, time left; in a terminal and in a pipe; after an interrupt."""

import io

import pytest
from rich.console import Console

from darwinlm.runtime import console
from darwinlm.runtime.console import Reporter


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(console.time, "monotonic", found.monotonic)
    return found


def piped(**options: bool) -> tuple[Reporter, io.StringIO]:
    stream = io.StringIO()
    return Reporter(Console(file=stream, width=200), **options), stream


def descend(reporter: Reporter, moved: Clock, steps: range, best: float = 1.461) -> None:
    for number in steps:
        moved.now += 65.0
        best -= 0.05425
        reporter.step(number, 6, what="descent", kl=(1.461, best))


def test_a_step_shows_what_it_is_the_losses_and_the_time_left(moved: Clock) -> None:
    reporter, stream = piped()
    with reporter.stage("search"):
        reporter.step(0, 6, what="descent")
        descend(reporter, moved, range(1, 5))
    last = stream.getvalue().splitlines()[-1]
    assert last == "search  descent 4/6 · KL 1.461 → 1.244 · 2 min 10 s left"
    assert len(stream.getvalue().splitlines()) == 4


def test_a_stage_that_was_interrupted_says_where_it_goes_on_and_counts_from_there(moved: Clock) -> None:
    reporter, stream = piped()
    with reporter.stage("search"):
        reporter.resumes()
        reporter.step(2, 6, what="descent", kl=(1.4, 1.3))
        moved.now += 60
        reporter.step(3, 6, what="descent", kl=(1.4, 1.25))
        moved.now += 60
        reporter.step(4, 6, what="descent", kl=(1.4, 1.2))
    assert stream.getvalue().splitlines() == [
        "search: resumes after descent 2 of 6",
        "search  descent 3/6 · KL 1.400 → 1.250",
        "search  descent 4/6 · KL 1.400 → 1.200 · 2 min left",
    ]


def test_quick_steps_do_not_flood_a_log(moved: Clock) -> None:
    reporter, stream = piped()
    with reporter.stage("recovery"):
        for number in range(1, 1001):
            moved.now += 0.125
            reporter.advance(number, 1000)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 12
    assert lines[:2] == ["recovery  80/1000", "recovery  160/1000 · 1 min 45 s left"]
