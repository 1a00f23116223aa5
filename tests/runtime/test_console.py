"""The line of progress: figures, rates, time left; in a terminal and in a pipe; after an interrupt."""

import io

import pytest
from rich.console import Console

from darwinlm.runtime import console, notebook_line
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
        reporter.step(number, 6, what="descent", loss=(1.461, best))


def test_a_step_shows_what_it_is_the_losses_and_the_time_left(moved: Clock) -> None:
    reporter, stream = piped()
    with reporter.stage("search"):
        reporter.step(0, 6, what="descent")
        descend(reporter, moved, range(1, 5))
    last = stream.getvalue().splitlines()[-1]
    assert last == "search  descent 4/6 · KL 1.461 → 1.244 · 2 min 10 s left"
    assert len(stream.getvalue().splitlines()) == 4


def test_losses_that_are_no_kl_have_their_own_name(moved: Clock) -> None:
    reporter, stream = piped()
    with reporter.stage("search"):
        moved.now += 60
        reporter.step(1, 6, what="generation", loss=(0.0511, 0.01234), unit="distance of scores")
    assert stream.getvalue().splitlines() == ["search  generation 1/6 · distance of scores 0.0511 → 0.0123"]


def test_a_stage_that_was_interrupted_says_where_it_goes_on_and_counts_from_there(moved: Clock) -> None:
    reporter, stream = piped()
    with reporter.stage("search"):
        reporter.resumes()
        reporter.step(2, 6, what="descent", loss=(1.4, 1.3))
        moved.now += 60
        reporter.step(3, 6, what="descent", loss=(1.4, 1.25))
        moved.now += 60
        reporter.step(4, 6, what="descent", loss=(1.4, 1.2))
    assert stream.getvalue().splitlines() == [
        "search: resumes after descent 2 of 6",
        "search  descent 3/6 · KL 1.400 → 1.250",
        "search  descent 4/6 · KL 1.400 → 1.200 · 2 min left",
    ]


def test_the_time_left_is_told_when_it_is_known(moved: Clock) -> None:
    """In the first minutes of ten, a text of its own was told to take 35 minutes, an hour, and 18 minutes."""
    reporter, stream = piped()
    with reporter.stage("own_text"):
        for seconds, done in ((0, 0), (12, 300), (11, 900), (11, 1500), (11, 3600)):
            moved.now += seconds
            reporter.advance(done, 60_000)
    assert stream.getvalue().splitlines() == [
        "own_text  300/60000",
        "own_text  900/60000",
        "own_text  1500/60000",
        "own_text  3600/60000 · 9 min 24 s left",
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


def test_a_notebook_shows_a_line_that_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """In IPython itself, whose messages to the browser are caught."""
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell", reason="IPython isn't installed")
    from IPython.core.displaypub import CapturingDisplayPublisher

    shell = interactiveshell.InteractiveShell.instance()
    monkeypatch.setattr(shell, "display_pub", CapturingDisplayPublisher(shell=shell))
    monkeypatch.setattr(notebook_line, "PAUSE", 0.0)
    try:
        reporter = Reporter(Console(force_jupyter=True))
        with reporter.stage("search"), reporter.stage("inside"):
            reporter.step(1, 4, what="<generation>", loss=(1.4, 1.2))
            reporter.advance(4, 4)
        shown = [(output["data"]["text/html"], output.get("update")) for output in shell.display_pub.outputs]
    finally:
        interactiveshell.InteractiveShell.clear_instance()
    pages = [html for html, update in shown if update]
    assert 'value="1" max="4"' in pages[0]
    assert "inside  &lt;generation&gt; 1/4 · KL 1.400 → 1.200" in pages[0]
    assert pages[-1] == "", "it vanishes at the end"
    assert len(pages) == 3


def test_a_line_of_a_notebook_is_not_updated_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython", reason="IPython isn't installed")
    line = notebook_line.NotebookLine()  # outside of IPython there is nowhere to show it
    line.show("words", 1, 2)
    line.end()
    updates: list[str] = []
    monkeypatch.setattr(line, "_handle", type("Handle", (), {"update": lambda _, html: updates.append(html.data)})())
    for number in range(1, 11):
        line.show("words", number, 10)
    assert len(updates) == 2, "the first one and the end"


def test_messages_are_logged_for_programs_that_call_ours(caplog: pytest.LogCaptureFixture) -> None:
    reporter, stream = piped(quiet=True)
    with caplog.at_level("INFO", logger="darwinlm"):
        reporter.say("search: ended 100 %s")
    assert caplog.messages == ["search: ended 100 %s"]
    assert stream.getvalue() == ""
