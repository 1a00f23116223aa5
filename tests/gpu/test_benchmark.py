"""The acceptance test of a GPU runs, tiny, on a CPU: it can't rot while there is no GPU."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny.process import python

ROOT = Path(__file__).parents[2]
PARTS = ("machine", "moments", "order", "stream", "candidates", "training", "resume", "refit", "decoding", "traps")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def lines_of(out: Path, *words: str) -> dict[str, dict[str, Any]]:
    """The lines of a benchmark, by name; nothing in it failed."""
    more = ("--device", "cpu", "--tiny", "--out", out)
    python("-W", "ignore", *words, *more, cwd=ROOT, seconds=800, PYTHONWARNINGS="ignore")
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["failed"] == []
    return {line["name"]: line for line in found["lines"]}


@pytest.mark.timeout(900)
def test_the_acceptance_test_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    named = lines_of(out, "benchmarks/gpu.py", *(word for part in PARTS for word in ("--part", part)))
    assert named["factors read for slopes"]["ok"] is True
    assert named["differs from float64 by"]["ok"] is True
    assert {line["part"] for line in named.values()} == set(PARTS)


@pytest.mark.timeout(900)
def test_that_of_a_node_runs_in_two_processes(tmp_path):
    named = lines_of(tmp_path / "node.json", *TORCHRUN, "benchmarks/gpu_node.py")
    for stage in ("database", "search", "refit", "recover", "evaluate"):
        assert named[f"{stage}: figures differ by"]["ok"] is True
        assert named[f"{stage}: speed-up"]["value"] > 0
    assert named["weights were dealt out"]["ok"] is True
