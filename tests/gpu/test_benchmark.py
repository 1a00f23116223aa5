"""The acceptance test of a GPU runs, tiny, on a CPU: it can't rot while there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from darwinlm.planning.devices import find_device

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(900)
def test_the_acceptance_test_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    parts = ("machine", "moments", "order", "stream", "candidates", "training", "resume", "refit", "decoding", "traps")
    chosen = [word for part in parts for word in ("--part", part)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--out", str(out), *chosen],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["failed"] == []
    named = {line["name"]: line for line in found["lines"]}
    assert named["factors read for slopes"]["ok"] is True
    assert named["differs from float64 by"]["ok"] is True
    assert named["llama2-7b-2.7b-fast all"]["value"] > 0
    assert {line["part"] for line in found["lines"]} == {*parts, "plan"}
    measured = find_device(str(out.with_suffix(".yaml")))
    assert measured.rates["float32"] == pytest.approx(1e12 * named["float32 product"]["value"], rel=0.01)
    assert measured.step_seconds == pytest.approx(named["removed channel"]["value"] / 1e6)


@pytest.mark.timeout(400)
def test_that_of_a_node_runs_in_two_processes(tmp_path):
    out = tmp_path / "node.json"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "benchmarks/gpu_node.py"]
    done = subprocess.run(
        [sys.executable, *launch, "--device", "cpu", "--tiny", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=350,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["failed"] == []
    named = {line["name"]: line for line in found["lines"]}
    assert named["database: error curves differ by"]["ok"] is True
    assert named["weights were dealt out"]["ok"] is True
