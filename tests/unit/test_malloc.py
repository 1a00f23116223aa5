"""Memory that stays with the process while a body runs, and goes back afterwards.

Each in a process of its own: where earlier tests left a hole of that size in the heap, a piece lands in it and stays.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from darwinlm import malloc
from darwinlm.malloc import kept_memory

glibc = pytest.mark.skipif(malloc._glibc() is None, reason="only glibc has mallopt")

PRELUDE = """
from pathlib import Path
import torch
from darwinlm.malloc import kept_memory

CPU = torch.device("cpu")
MEGABYTES = 256

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20

def freed():
    large = torch.ones(MEGABYTES << 20, dtype=torch.uint8)
    full = resident()
    del large
    return full - resident()
"""


def in_a_process(body: str) -> dict[str, float]:
    """Megabytes by name that a script prints."""
    script = PRELUDE + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}


@glibc
def test_freed_memory_stays_while_the_body_runs_and_goes_back_after_it():
    found = in_a_process(
        """
        with kept_memory(CPU):
            print("inside", freed())
            full = resident()
        print("behind", full - resident())
        print("later", freed())
        """
    )
    assert found["inside"] < 32
    assert found["behind"] > 128
    assert found["later"] > 128


@glibc
def test_one_inside_another_does_not_end_it():
    found = in_a_process(
        """
        with kept_memory(CPU):
            with kept_memory(CPU):
                pass
            print("inside", freed())
            full = resident()
        print("behind", full - resident())
        """
    )
    assert found["inside"] < 32
    assert found["behind"] > 128


@glibc
def test_it_ends_with_an_error_too():
    found = in_a_process(
        """
        try:
            with kept_memory(CPU):
                print("inside", freed())
                raise ValueError
        except ValueError:
            pass
        print("later", freed())
        """
    )
    assert found["inside"] < 32
    assert found["later"] > 128


@pytest.mark.parametrize(("device", "platform"), [("cuda", "linux"), ("cpu", "darwin")])
def test_elsewhere_nothing_is_set(monkeypatch, device, platform):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(malloc, "_set", lambda *_: pytest.fail("mallopt was called"))
    with kept_memory(torch.device(device)):
        pass
