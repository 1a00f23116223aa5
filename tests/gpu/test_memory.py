"""Memory of a device: caches give half of it back when it is full, and work goes on with the same results."""

from unittest import mock

import pytest
import torch

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime import memory
from darwinlm.runtime.memory import FRAGMENTS, HALVINGS, PARTS, Bounded, DeviceMemory, memory_of
from darwinlm.streaming.streamed import StreamedDecoder
from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME
from tests.tiny.checkpoint import tiny_checkpoint

CARD = torch.device(NAME, 0)


@pytest.fixture(autouse=True)
def anew():
    memory_of.cache_clear()
    yield
    memory_of.cache_clear()


def test_parts_are_all_there_is_but_fragments():
    assert sum(PARTS.values()) == pytest.approx(1)
    with pretend_gpu(memory=1000):
        rooms = [memory_of(CARD).room(part)(0) for part in PARTS]
        assert sum(rooms) == pytest.approx(1000 * (1 - FRAGMENTS), abs=len(PARTS))
        assert memory_of(CARD).room("blocks")(450) == 160
    assert memory_of(CARD) is memory_of(torch.device("cuda:0"))


def test_full_memory_halves_caches_and_only_then_ends(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    handed = DeviceMemory(torch.device("cpu"))
    dropped: list[int] = []
    cache = handed.watch(Bounded[int, int](lambda value: value, handed.room("blocks"), dropped=dropped.append))
    for key in range(4):
        assert cache.put(key, 100)
    work = mock.Mock(side_effect=[torch.OutOfMemoryError("full"), torch.OutOfMemoryError("full"), "done"])
    assert handed.survive(work, 1) == "done"
    assert dropped == [0, 1, 2]
    assert handed.room("blocks")(0) == 100
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
