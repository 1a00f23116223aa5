"""Copies beside a GPU's work, with streams that do nothing: what is read was written, from memory and from files."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest
import torch

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import DeviceMemoryError
from darwinlm.streaming import hidden, streamed, transfers
from darwinlm.streaming.hidden import HiddenMemory, HiddenStates
from darwinlm.streaming.streamed import StreamedDecoder
from darwinlm.streaming.transfers import HostCopy, Mover, pinned_bytes, pinned_like


class Event:
    """Has always happened."""

    def synchronize(self) -> None:
        pass


class Stream:
    """Does everything at once."""

    def __init__(self, device: object = None) -> None:
        self.waited: list[object] = []

    def record_event(self) -> Event:
        return Event()

    def wait_event(self, event: Event) -> None:
        self.waited.append(event)

    def wait_stream(self, stream: Stream) -> None:
        self.waited.append(stream)


@pytest.fixture
def without_gpu(monkeypatch):
    """Movers between main memory and itself."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(transfers, "pinned_like", lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
    monkeypatch.setattr(hidden, "pinned_like", lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


@pytest.mark.parametrize("place", ["host", "file"])
def test_a_stream_moves_on_and_is_read_again(place, without_gpu, tmp_path):
    batches = [torch.full((2, 3), float(index)) for index in range(7)]
    states = HiddenStates(iter(batches), 42, HiddenMemory(tmp_path, place))
    states._mover = Mover(torch.device("cpu"), through_file=place == "file")
    for turn in range(3):
        for index, batch in enumerate(states):
            assert torch.equal(batch, batches[index] + turn)
            states[index] = batch + 1
    states[3] = batches[0]  # while the fourth is on its way
    assert torch.equal(states[3], batches[0])
    _ = states[4]
    states[5] = batches[0]
    assert torch.equal(states[5], batches[0]), "what was fetched ahead is old"


def test_the_next_block_is_read_while_one_runs(without_gpu, tiny_llama):
    checkpoint, tokens = Checkpoint.open(tiny_llama), torch.arange(3, 35).view(2, 16)
    how = {"dtype": torch.float32, "device": torch.device("cpu")}
    plain, ahead = (StreamedDecoder(checkpoint, tokens, **how) for _ in range(2))
    ahead._mover = Mover(torch.device("cpu"), through_file=True)
    reads: list[tuple[int, bool]] = []
    weights, here = ahead._weights, threading.get_ident()

    def noted(block: int) -> dict[str, torch.Tensor]:
        reads.append((block, threading.get_ident() == here))
        return weights(block)

    ahead._weights = noted
    ahead._staying._room = lambda reserved: 0
    for _ in range(2):
        (expected,), (found,) = (each.through([tokens]) for each in (plain, ahead))
        assert torch.equal(found, expected)
    count = len(plain.blocks)
    assert reads == 2 * [(block, block == 0) for block in range(count)]
    next(ahead.walk(range(count)))  # a walk that ends early
    assert ahead.load(1).keys() == plain._read(1).keys(), "what was on its way"


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned")
def test_no_room_for_pinned_memory_is_said():
    with pytest.raises(DeviceMemoryError, match=r"can't pin 40 bytes of main memory .* finished work is kept"):
        pinned_like(torch.zeros(10))


def test_a_device_smaller_than_a_block_is_refused(tiny_llama, monkeypatch):
    monkeypatch.setattr(streamed, "all_bytes", lambda device: 1000)
    with pytest.raises(DeviceMemoryError, match=r"a block of .* takes .* kB, but cpu has 1 kB: use a device with more"):
        StreamedDecoder(Checkpoint.open(tiny_llama), torch.arange(3), dtype=torch.float32, device=torch.device("cpu"))


def test_the_thread_works_on_the_movers_gpu(without_gpu, monkeypatch):
    chosen: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append((device, threading.get_ident())))
    mover = Mover(torch.device("cuda:3"), through_file=True)
    assert mover._thread is not None
    assert chosen == []
    there = mover._thread.submit(threading.get_ident).result()
    assert chosen == [(torch.device("cuda:3"), there)]
    assert there != threading.get_ident()


def test_pinned_memory_comes_in_powers_of_two():
    assert [pinned_bytes(size) for size in (0, 1, 2, 3, 1024, 1025)] == [0, 1, 2, 4, 1024, 2048]


@pytest.mark.parametrize("slab", [8, 30, 1 << 20])
def test_a_copy_in_main_memory_gives_back_every_byte(slab, monkeypatch):
    """Whatever the pieces, whose borders cut tensors and single numbers."""
    monkeypatch.setattr(transfers, "SLAB", slab)
    tensors = [torch.randn(3, 5), torch.randn(7, dtype=torch.bfloat16), torch.empty(0), torch.arange(4)]
    copy = HostCopy(tensors)
    assert copy.nbytes == sum(tensor.nbytes for tensor in tensors)
    given = [torch.zeros_like(tensor) for tensor in tensors]
    copy.copy_to(given)
    assert all(torch.equal(there, was) for there, was in zip(given, tensors, strict=True))
