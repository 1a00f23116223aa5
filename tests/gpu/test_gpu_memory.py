"""Memory: what is free, what caches take of it and give back when it is full; work goes on with the same results."""

from functools import partial
from unittest import mock

import pytest
import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime import memory, parallel
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.memory import CACHES, FRAGMENTS, HALVINGS, OTHERS, WORK, Bounded, DeviceMemory, memory_of
from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME
from tests.tiny.checkpoint import tiny_checkpoint

CARD = torch.device(NAME, 0)


@pytest.fixture(autouse=True)
def anew():
    memory_of.cache_clear()
    yield
    memory_of.cache_clear()


def test_caches_together_take_what_is_for_them():
    assert sum(CACHES.values()) == pytest.approx(1)
    with pretend_gpu(memory=1000):
        rooms = [memory_of(CARD).room(part) for part in CACHES]
        assert sum(rooms) == pytest.approx(1000 * (1 - FRAGMENTS), abs=len(CACHES))
        assert memory_of(CARD).room("blocks", 450) == 200
    assert memory_of(CARD) is memory_of(torch.device("cuda:0"))


def test_in_main_memory_caches_leave_half_to_others_and_what_the_stage_needs(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    here = memory_of(torch.device("cpu"))
    assert sum(map(here.room, CACHES)) == pytest.approx(1000 * (1 - OTHERS), abs=len(CACHES))
    here.needs, here.stage = {"search": 700, "refit": 2000}, "search"
    assert sum(map(here.room, CACHES)) == pytest.approx(300, abs=len(CACHES))
    assert here.room("blocks", 800) == 100
    here.stage = "refit"
    assert sum(map(here.room, CACHES)) == 0
    assert [here.room(part) for part in WORK] == [1000 * share for share in WORK.values()], (
        "what work takes is no cache"
    )


def test_a_limit_counts_what_the_process_holds_and_is_shared_by_its_machine(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(memory, "taken_bytes", lambda device: 150)
    cpu = torch.device("cpu")
    memory.set_limit(cpu, 950)
    assert memory_of(cpu).free == 800
    assert sum(map(memory_of(cpu).room, CACHES)) == pytest.approx(1000 * (1 - OTHERS), abs=len(CACHES))
    memory.set_limit(cpu, 500)
    assert sum(map(memory_of(cpu).room, CACHES)) == pytest.approx(350, abs=len(CACHES)), "all that the limit leaves"
    monkeypatch.setattr(memory.parallel, "local_size", lambda: 2)
    memory.set_limit(cpu, 950)
    assert memory_of(cpu).free == 325
    monkeypatch.setattr(memory, "taken_bytes", lambda device: 500)
    assert memory_of(cpu).free == 0
    memory.set_limit(cpu, None)
    assert memory_of(cpu).free == 1000
    with pytest.raises(RecipeError, match=r"compute\.memory is 1,000,000,000 GB, but cpu has .* GB: set less, or none"):
        memory.set_limit(cpu, 10**18)


def test_full_memory_halves_caches_and_only_then_ends(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2000)
    handed = DeviceMemory(torch.device("cpu"))
    dropped: list[int] = []
    cache = handed.watch(Bounded[int, int](lambda value: value, partial(handed.room, "blocks"), dropped=dropped.append))
    for key in range(4):
        assert cache.put(key, 100)
    work = mock.Mock(side_effect=[torch.OutOfMemoryError("full"), torch.OutOfMemoryError("full"), "done"])
    assert handed.survive(work, 1) == "done"
    assert dropped == [0, 1, 2]
    assert handed.room("blocks") == 125
    with pytest.raises(torch.OutOfMemoryError):
        handed.survive(mock.Mock(side_effect=torch.OutOfMemoryError("full")))
    assert handed._halvings == HALVINGS
    with pytest.raises(RuntimeError, match="other"):
        handed.survive(mock.Mock(side_effect=RuntimeError("other")))


def test_a_walk_goes_on_where_blocks_that_stay_filled_the_memory(tmp_path, monkeypatch):
    """The cache is told of memory that isn't there."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=4))
    tokens = torch.arange(3, 35).view(2, 16)
    here = StreamedDecoder(checkpoint, tokens, dtype=torch.float32, device=torch.device("cpu"))
    (expected,) = here.through([tokens])
    block = sum(weight.nbytes for weight in checkpoint.skeleton().model.layers[0].parameters())
    with pretend_gpu() as gpu:
        there = StreamedDecoder(checkpoint, tokens, dtype=torch.float32, device=CARD)
        gpu.memory = gpu.allocated + 4 * block
        monkeypatch.setattr(memory, "free_bytes", lambda device: 100 * block)
        for _ in range(2):
            (found,) = memory_of(CARD).survive(there.through, [tokens])
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
        assert 0 < memory_of(CARD)._halvings < HALVINGS


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
    assert memory.free_bytes(device) == memory.memory_of(device).free == free


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


@pytest.mark.parametrize("place", ["cpu", NAME])
@pytest.mark.parametrize("chosen", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_segments_grow_on_a_gpu_unless_the_user_has_chosen(place, chosen, monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, "max_split_size_mb:512")
    asked: list[str] = []
    monkeypatch.setattr("torch._C._accelerator_setAllocatorSettings", asked.append, raising=False)
    memory.grow_segments(torch.device(place))
    assert asked == (["expandable_segments:True"] if place == NAME and chosen is None else [])
