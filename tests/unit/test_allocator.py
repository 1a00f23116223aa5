"""Memory that stays with the process while a body runs, and goes back afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from darwinlm import allocator
from darwinlm.allocator import kept_memory

CPU = torch.device("cpu")
MEGABYTES = 256
glibc = pytest.mark.skipif(allocator._glibc() is None, reason="only glibc has mallopt")


def resident() -> float:
    """Resident memory of this process in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@glibc
def test_freed_memory_stays_while_the_body_runs_and_goes_back_after_it():
    with kept_memory(CPU):
        large = torch.ones(MEGABYTES << 20, dtype=torch.uint8)
        full = resident()
        del large
        assert resident() > full - MEGABYTES / 8
    assert resident() < full - MEGABYTES / 2
    large = torch.ones(MEGABYTES << 20, dtype=torch.uint8)
    full = resident()
    del large
    assert resident() < full - MEGABYTES / 2


@glibc
def test_one_inside_another_does_not_end_it():
    with kept_memory(CPU):
        with kept_memory(CPU):
            pass
        large = torch.ones(MEGABYTES << 20, dtype=torch.uint8)
        full = resident()
        del large
        assert resident() > full - MEGABYTES / 8
    assert resident() < full - MEGABYTES / 2


@glibc
def test_it_ends_with_an_error_too():
    with pytest.raises(ValueError, match="no"), kept_memory(CPU):
        raise ValueError("no")
    large = torch.ones(MEGABYTES << 20, dtype=torch.uint8)
    full = resident()
    del large
    assert resident() < full - MEGABYTES / 2


@pytest.mark.parametrize(("device", "platform"), [("cuda", "linux"), ("cpu", "darwin")])
def test_elsewhere_nothing_is_set(monkeypatch, device, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(allocator, "_set", lambda *_: pytest.fail("mallopt was called"))
    with kept_memory(torch.device(device)):
        pass
