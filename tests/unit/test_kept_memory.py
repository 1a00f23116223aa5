"""Memory that stays with the process while a body runs, and goes back afterwards."""

import pytest
from tests.tiny.process import python

from darwinlm.runtime import memory

SCRIPT = """
from pathlib import Path
import torch
from darwinlm.runtime.memory import kept_memory

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

with kept_memory(CPU):
    with kept_memory(CPU):
        pass
    print("behind another", freed())
    full = resident()
print("at the end", full - resident())
print("later", freed())
try:
    with kept_memory(CPU):
        print("again", freed())
        raise ValueError
except ValueError:
    pass
print("after an error", freed())
"""


@pytest.mark.skipif(memory._glibc() is None, reason="only glibc has mallopt")
def test_freed_memory_stays_while_the_body_runs_and_goes_back_after_it():
    """In a process of its own: where earlier tests left a hole in the heap, a piece lands in it and stays."""
    done = python("-c", SCRIPT)
    found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in done.stdout.splitlines())}
    assert max(found.pop("behind another"), found.pop("again")) < 32
    assert min(found["at the end"], found["later"], found["after an error"]) > 128
