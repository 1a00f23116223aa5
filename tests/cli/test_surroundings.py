"""What lies in the current folder or in the environment decides nothing: commands end well, and say what they say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of its own process, in a folder, with more environment variables."""
    command = [sys.executable, "-P", "-c", "from darwinlm.cli import main; main()", *map(str, words)]
    whole = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=whole, capture_output=True, text=True, timeout=120, check=False)


ENVIRONMENTS = (
    {"MPLBACKEND": "x", "MATPLOTLIBRC": "/etc/hostname", "SOURCE_DATE_EPOCH": "x", "COLUMNS": "0"},
    {"MPLBACKEND": "module://nowhere", "MATPLOTLIBRC": "nowhere", "SOURCE_DATE_EPOCH": "9" * 30, "COLUMNS": "-3"},
)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=["no numbers", "numbers"])
def test_an_odd_environment(tmp_path: Path, environment: dict[str, str]) -> None:
    """Of a command that imports all that a run does."""
    done = run("prune", "nowhere", "--text", "nowhere", "--out", tmp_path / "out", cwd=tmp_path, **environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: there is no model at 'nowhere'")


def test_a_folder_named_like_a_model_of_the_hub_is_told_from_it(
    prune, command, tiny_llama: Path, tiny_text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no published file holds a path, not even a relative one."""
    shutil.copytree(tiny_llama, tmp_path / "CLIENT" / "tiny")
    (tmp_path / "texts").mkdir()
    shutil.copy(tiny_text_file, tmp_path / "texts" / "a.txt")
    monkeypatch.chdir(tmp_path)
    ended = prune("--set", "recovery.text=texts/a.txt", model="CLIENT/tiny", text="texts/a.txt", out="runs/out")
    assert "model: the folder ./CLIENT/tiny, not CLIENT/tiny of the hub" in ended.succeeded().out
    published = [*Path("runs/out/model").iterdir(), Path("runs/out/report.html")]
    for path in published:
        assert b"CLIENT" not in path.read_bytes(), path
        assert b"texts/" not in path.read_bytes(), path
    recipe = json.loads(Path("runs/out/model/darwinlm_recipe.json").read_text())["recipe"]
    assert (recipe["model"], recipe["text"]["source"], recipe["recovery"]["text"]) == ("tiny", "a.txt", "a.txt")
    assert "./CLIENT/tiny: " in command("plan", "CLIENT/tiny").succeeded().out
    again = prune("--set", "recovery.text=texts/a.txt", model="./CLIENT/tiny", text="texts/a.txt", out="runs/out")
    assert "already done" in again.succeeded().out
