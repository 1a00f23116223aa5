"""Copies beside a GPU's work: what is read was written, and nothing is used too early."""

import pytest
import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk import stream, streamed, transfers
from darwinlm.model.walk.hidden import HiddenMemory, HiddenStates
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.model.walk.transfers import pinned_like
from darwinlm.runtime.compute import to_device
from darwinlm.runtime.errors import DeviceMemoryError
from tests.gpu.rules import NAME
from tests.gpu.tally import UnfinishedError
from tests.tiny.checkpoint import run_through, stream_over

CARD = torch.device(NAME, 0)


@pytest.mark.parametrize("place", ["host", "file"])
def test_a_stream_moves_on_and_is_read_again(place, gpu, tmp_path):
    batches = [torch.full((2, 3), float(index), device=CARD) for index in range(7)]
    states = HiddenStates(iter(batches), 42, HiddenMemory(tmp_path, place))
    gpu.restart()
    for turn in range(3):
        for index, batch in enumerate(states):
            assert batch.cpu().eq(index + turn).all()
            states[index] = batch + 1
    states[3] = batches[0]  # while the fourth is on its way
    assert states[3].cpu().eq(0).all()
    _ = states[4]
    states[5] = batches[0]
    assert states[5].cpu().eq(0).all(), "what was fetched ahead is old"
    assert gpu.tally.inside(transfers)["waits"] == 0


def test_a_stream_waits_once_for_a_block_and_reads_the_next_one_meanwhile(gpu, tiny_llama, monkeypatch):
    tokens = torch.arange(3, 67).view(4, 16)
    here, there = (stream_over(tiny_llama, tokens, 16, device=device) for device in (torch.device("cpu"), CARD))
    begun: list[str] = []
    decoder, fetch, run = there.decoder, there.decoder._fetch, there.decoder.run_block
    monkeypatch.setattr(decoder, "_fetch", lambda block: begun.append(f"reads {block}") or fetch(block))
    monkeypatch.setattr(decoder, "run_block", lambda block, *more: begun.append(f"runs {block}") or run(block, *more))
    gpu.restart()
    run_through(there)
    run_through(here)
    for found, expected in zip(there.hidden, here.hidden, strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    count, batches = len(decoder.blocks), len(there.hidden)
    order = ["reads 0"]
    for block in range(count):
        order += [f"reads {block}"] * (block > 0) + [f"reads {block + 1}"] * (block + 1 < count)
        order += [f"runs {block}"] * batches
    assert batches == 4
    assert begun == order, "the next block is on its way before this one runs"
    assert gpu.tally.inside(stream)["waits"] == count
    assert not decoder._arriving


@pytest.mark.skipif(torch.cuda.is_available(), reason="memory can be pinned")
def test_no_room_for_pinned_memory_is_said():
    with pytest.raises(DeviceMemoryError, match=r"can't pin 40 bytes of main memory .* finished work is kept"):
        pinned_like(torch.zeros(10))


def test_a_device_smaller_than_a_block_is_refused(tiny_llama, monkeypatch):
    monkeypatch.setattr(streamed, "all_bytes", lambda device: 1000)
    with pytest.raises(DeviceMemoryError, match=r"a block of .* takes .* kB, but cpu has 1 kB: use a device with more"):
        StreamedDecoder(Checkpoint.open(tiny_llama), torch.arange(3), dtype=torch.float32, device=torch.device("cpu"))


def test_what_goes_up_is_not_waited_for(gpu):
    line = gpu.clocks.line.snapshot()
    there = to_device(torch.arange(3), CARD)
    assert there.tolist() == [0, 1, 2]
    assert to_device(there, CARD) is there
    assert gpu.clocks.line.snapshot() != line


def test_pinned_memory_is_left_alone_until_its_copy_has_ended(gpu):
    pinned, event = torch.ones(3).pin_memory(), torch.cuda.Event()
    there = pinned.to(CARD, non_blocking=True)
    assert pinned.sum() == 3, "it may be read"
    with pytest.raises(UnfinishedError, match="pinned memory is written before a copy of stream 0 has ended"):
        pinned.zero_()
    event.record()
    event.synchronize()
    pinned.zero_()
    pinned.copy_(there, non_blocking=True)
    with pytest.raises(UnfinishedError, match="pinned memory is read"):
        pinned.sum()
    torch.cuda.synchronize()
    assert pinned.sum() == 3
    fetched = there.to("cpu", non_blocking=True)
    with pytest.raises(UnfinishedError, match="pinned memory is read"):
        fetched.sum()


def test_streams_wait_for_each_other(gpu):
    there, side = torch.ones(3, device=CARD), torch.cuda.Stream()
    with torch.cuda.stream(side), pytest.raises(UnfinishedError, match="on what stream 0 hasn't finished"):
        there.sum()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        more = there + 1
    with pytest.raises(UnfinishedError, match="hasn't finished"):
        more.sum()
    del there
    assert gpu.faults, "the side's work on it may not have ended, and the allocator doesn't know of it"
    gpu.faults.clear()
    torch.cuda.current_stream().wait_stream(side)
    assert more.sum() == 6
