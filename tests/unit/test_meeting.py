"""Waiting for other processes: for one that lives and comes to the same place, and for no other."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from darwinlm.runtime import meeting
from darwinlm.runtime.errors import ParallelError
from darwinlm.runtime.meeting import Meetings


@pytest.fixture
def pair() -> Iterator[tuple[Meetings, Meetings]]:
    """Two processes' meetings, in threads of one."""
    store = dist.HashStore()
    made = tuple(Meetings(store, rank, 2, patience=1.0, beat=0.05) for rank in range(2))
    yield made
    for one in made:
        one.leave()


def test_those_who_are_early_wait(pair):
    order: list[str] = []

    def late() -> None:
        for _ in range(50):
            pair[1].wait("a sum")
        time.sleep(1.5)  # longer than patience, but alive
        order.append("late")
        pair[1].wait("a sum")

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(late)
        for _ in range(51):
            pair[0].wait("a sum")
        order.append("early")
        other.result()
    assert order == ["late", "early"]


def test_who_waits_for_something_else_is_told(pair):
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(pair[1].wait, "a value")
        with pytest.raises(ParallelError, match="process 0 waits for 'a sum', process 1 for 'a value'"):
            pair[0].wait("a sum")
        with pytest.raises(ParallelError, match="process 1 waits for 'a value', process 0 for 'a sum'"):
            other.result()


def test_one_that_has_ended_is_not_waited_for(pair):
    pair[1].leave()
    with pytest.raises(ParallelError, match=r"process 1 has ended: read its messages, then rerun"):
        pair[0].wait("a sum")


def test_one_without_a_sign_of_life_is_lost(pair):
    pair[1]._left.set()  # as if it were stopped or its machine gone
    with pytest.raises(ParallelError, match="process 1 has not responded for 0 minutes"):
        pair[0].wait("a sum")


def test_a_store_that_is_gone_is_one_message(pair, monkeypatch):
    def gone(*_: object) -> None:
        raise RuntimeError("Connection reset by peer\nmore")

    monkeypatch.setattr(type(pair[0].store), "add", gone)
    with pytest.raises(ParallelError, match=r"the connection to another process is lost \(Connection reset by peer\)"):
        pair[0].wait("a sum")


def test_signs_of_life_end_with_the_process():
    meetings = Meetings(dist.HashStore(), 0, 1, beat=60.0)
    meetings.wait("nobody")
    meetings.leave()
    assert not any(thread is meetings._beating for thread in threading.enumerate())


def test_a_clock_that_jumps_loses_nobody(monkeypatch):
    """As after a machine has slept: the other one's heartbeat comes only after the first look."""
    store, pulses, now = dist.HashStore(), {}, 0
    store.set("pulse/1", "1")
    one = Meetings(store, 0, 2, beat=60.0)
    monkeypatch.setattr(meeting, "time", SimpleNamespace(monotonic=lambda: now))
    for _ in range(20):
        now += 10**5
        one._look_at(1, "a sum", pulses)
    assert 0 < pulses[1].silent < 20
    pulses[1].silent = 600.0
    now += 1
    with pytest.raises(ParallelError, match="has not responded for 10 minutes"):
        one._look_at(1, "a sum", pulses)
    one.leave()
