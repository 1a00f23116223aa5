"""torchrun with two processes: one artifact, the same to rounding as that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.checkpoint import SETTINGS

from darwinlm.pipeline import run_stages

SECONDS = 200


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes, one thread each."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "darwinlm.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *launch, *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment,
        check=False,
    )


def options(model: Path, text: Path, *more: str) -> list[str]:
    assigned = [part for assignment in (*SETTINGS, *more) for part in ("--set", assignment)]
    return [str(model), "--text", str(text), "--keep", "60%", *assigned]


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's standalone mode needs a POSIX system")
def test_two_processes_give_the_database_of_one(tiny_llama, tiny_text_file, make_run, tmp_path):
    """Also the stages after it: the second process follows the first one to the end, and only the first one talks."""
    done = torchrun("prune", *options(tiny_llama, tiny_text_file), "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("calibration and database:") == 1
    assert "summary" in done.stdout
    assert (tmp_path / "two" / "summary.json").is_file()
    run_stages(make_run(tiny_llama, tmp_path / "one"), "database")
    files = sorted((tmp_path / "one" / "stages" / "database").glob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        one, two = load_file(file), load_file(tmp_path / "two" / "stages" / "database" / file.name)
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5 * float(tensor.abs().max()))
            else:
                assert torch.equal(two[name], tensor), f"{file.name} {name}"


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's standalone mode needs a POSIX system")
def test_an_error_in_two_processes_is_told_once(tiny_llama, tmp_path):
    done = torchrun("prune", *options(tiny_llama, tmp_path / "none.txt"), "--out", str(tmp_path / "out"))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "none.txt" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's standalone mode needs a POSIX system")
def test_two_processes_compare_methods(tiny_llama, tiny_text_file, tmp_path):
    """Baselines are stages of the first process alone, in which the search's own shared work is done too."""
    methods = ("--methods", "uniform,ziplm,darwinlm+refit")
    done = torchrun("compare", *options(tiny_llama, tiny_text_file), *methods, "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "two" / "comparison.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in found["rows"]] == ["dense", "uniform", "ziplm", "darwinlm+refit"]
    assert done.stdout.count("measure uniform:") == 1
