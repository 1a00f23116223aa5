"""The acceptance test of a GPU runs, tiny, on a CPU: it can't rot while there is no GPU."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.tiny.process import python

from lab.benchmarks import gpu
from lab.benchmarks.gpu_units import Line, Setup

ROOT = Path(__file__).parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def lines_of(out: Path, *words: str) -> dict[str, dict[str, Any]]:
    """The lines of a benchmark, by name; nothing in it failed."""
    more = ("--device", "cpu", "--tiny", "--out", out)
    python("-W", "ignore", *words, *more, cwd=ROOT, seconds=800, PYTHONWARNINGS="ignore")
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["failed"] == []
    return {line["name"]: line for line in found["lines"]}


def test_all_time_limits_together_are_nine_minutes():
    assert sum(seconds for seconds, _ in gpu.PARTS.values()) < gpu.ALL == 9 * 60


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The benchmark with small shapes; its parts share models."""
    lines: list[Line] = []
    setup = Setup("cpu", tiny=True, work=tmp_path_factory.mktemp("gpu"), lines=SimpleNamespace(put=lines.append))
    return SimpleNamespace(setup=setup, parts=gpu.PARTS, lines=lines)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", [name for name in gpu.PARTS if name != "plan"])  # of whole recipes alone
def test_each_part_runs_on_a_cpu(tiny, part):
    tiny.parts[part][1](tiny.setup)
    lines = [line for line in tiny.lines if line.part == part]
    assert lines
    assert not [line for line in lines if line.ok is False]


@pytest.mark.timeout(900)
def test_that_of_a_node_runs_in_two_processes(tmp_path):
    named = lines_of(tmp_path / "node.json", *TORCHRUN, "-m", "lab.benchmarks.gpu_node")
    for stage in ("database", "search", "refit", "recover", "evaluate"):
        assert named[f"{stage}: figures differ by"]["ok"] is True
        assert named[f"{stage}: speed-up"]["value"] > 0
    assert named["weights were dealt out"]["ok"] is True
