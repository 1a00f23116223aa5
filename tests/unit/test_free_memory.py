"""What is free, and what is kept of it."""

import pytest
import torch

from darwinlm.runtime import memory, parallel
from darwinlm.runtime.memory import Bounded


def test_a_machine_says_what_it_has_available(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:   40 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "none")
    assert memory.free_host_bytes() == 40 * 1024
    monkeypatch.setattr(parallel, "local_size", lambda: 4)
    assert memory.free_bytes(torch.device("cpu")) == 10 * 1024, "processes divide it"


def test_a_container_says_what_it_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.free_host_bytes() == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_host_bytes() > 1 << 20, "without a limit the machine counts"


@pytest.mark.parametrize("status", [b"Name:\tpyth\xc3\nRssAnon:\t   7 kB\n", b"Name:\tpython\n", None])
def test_what_a_process_holds_whatever_its_system_says(tmp_path, monkeypatch, status):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    if status is not None:
        (tmp_path / "status").write_bytes(status)
    taken = memory.taken_bytes(torch.device("cpu"))
    assert taken == 7 * 1024 if status and b"RssAnon" in status else taken > 1 << 20


def test_memory_that_pytorch_holds_and_does_not_use_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 450)
    assert memory.free_bytes(torch.device("cuda")) == 150


@pytest.mark.parametrize(("on_host", "free"), [(100, 60), (50, 50)])
def test_apples_gpu_shares_the_machines_memory(monkeypatch, on_host, free):
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 90)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 30)
    monkeypatch.setattr(memory, "free_host_bytes", lambda: on_host)
    device = torch.device("mps")
    assert memory.all_bytes(device) == 90
    assert memory.free_bytes(device) == memory.room_at_peak(device) == memory.memory_of(device).free == free


def kept(bounded: Bounded[int, int], keys: range) -> list[int]:
    return [key for key in keys if bounded.get(key) is not None]


def test_of_a_scan_the_first_stay():
    """Where the last used stayed, a scan that is a little longer than the room would never find anything."""
    rooms = iter([30, 14, 44])
    bounded: Bounded[int, int] = Bounded(lambda value: value, lambda size: next(rooms) - size, scanned=True)
    assert [bounded.put(key, 10) for key in range(5)] == [True, True, True, False, False]
    assert kept(bounded, range(5)) == [0, 1, 2]
    assert not bounded.has_room(10)
    bounded.clear()
    assert bounded.has_room(30)
    bounded.reserve(4)
    assert bounded.has_room(10)
    assert not bounded.has_room(11), "the room was measured again, without what is reserved"
    bounded.reserve(4, among=2)
    assert bounded.has_room(20)
    assert not bounded.has_room(21), "the other half is another cache's"
