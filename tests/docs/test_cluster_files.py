"""The files for clusters: their scripts run with pretended launchers, and start commands that darwinlm takes."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tests.docs.test_docs import parse

CLUSTER = Path(__file__).parents[2] / "recipes" / "cluster"
SLURM = CLUSTER / "recover.sbatch"
SKY = CLUSTER / "prune-and-recover.sky.yaml"
TASK = {"name", "resources", "workdir", "envs", "setup", "run"}
"""Fields of a SkyPilot task that the file uses."""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def started(script: str, folder: Path, **environment: str) -> list[list[str]]:
    """Words of each command that a script starts through a launcher, or itself; launchers only note their words."""
    for name in ("srun", "torchrun", "darwinlm"):
        launcher = folder / name
        launcher.write_text('#!/bin/sh\nprintf "%s\\n" "${0##*/}" "$@" END >> "$NOTED"\n')
        launcher.chmod(0o755)
    scontrol = folder / "scontrol"
    scontrol.write_text('#!/bin/sh\nfor number in $(seq 5000); do echo "node$number"; done\n')
    scontrol.chmod(0o755)
    noted = folder / "noted"
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "NOTED": str(noted)}
    ended = subprocess.run(
        ["bash", "-c", script], env=paths | environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert ended.returncode == 0, ended.stderr
    return [part.split("\n") for part in noted.read_text().removesuffix("\nEND\n").split("\nEND\n")]


def darwinlm_of(words: list[str]) -> list[str]:
    """The words of our command in those of a launcher."""
    return words[words.index("darwinlm") :]


JOB = {"SLURM_JOB_NODELIST": "node[1-5000]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}


def test_the_slurm_job_starts_torchrun_on_every_node(tmp_path: Path) -> None:
    script = SLURM.read_text(encoding="utf-8")
    (words,) = started(script, tmp_path, **JOB, RUN="/shared/a run", OUT="/shared/out")
    assert words[:4] == ["srun", "torchrun", "--nnodes", "2"]
    assert words[words.index("--rdzv-endpoint") + 1] == "node1:29500"
    ours = darwinlm_of(words)
    assert ours[:3] == ["darwinlm", "recover", "/shared/a run"]
    parse(" ".join(f"'{word}'" for word in ours))


@pytest.mark.parametrize("missing", ["RUN", "OUT"])
def test_the_slurm_job_says_which_folder_is_missing(tmp_path: Path, missing: str) -> None:
    environment = {"PATH": os.environ["PATH"], "RUN": "/shared/run", "OUT": "/shared/out"} | JOB
    del environment[missing]
    ended = subprocess.run(
        ["bash", str(SLURM)], env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert ended.returncode != 0
    assert f"--export=ALL,{missing}=" in ended.stderr


def test_options_of_the_slurm_job_precede_its_commands() -> None:
    lines = SLURM.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options
    assert max(options) < first, "sbatch reads none behind the first command"


def test_the_skypilot_task_prunes_and_recovers(tmp_path: Path) -> None:
    task = yaml.safe_load(SKY.read_text(encoding="utf-8"))
    assert set(task) == TASK
    pruned, recovered = started(task["run"], tmp_path, SKYPILOT_NUM_GPUS_PER_NODE="8", **task["envs"])
    assert pruned[:2] == ["darwinlm", "prune"]
    assert recovered[:4] == ["torchrun", "--standalone", "--nproc-per-node", "8"]
    for words in (pruned, darwinlm_of(recovered)):
        parse(" ".join(f"'{word}'" for word in words))
    assert pruned[-1] == darwinlm_of(recovered)[2], "recovery takes what was pruned"
