"""The same command gives the same bytes, in another folder and another process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.tiny.checkpoint import SETTINGS

from darwinlm.artifact import read_json

RESULTS = ("stages/search/result.json", "stages/plan/plan.json")


def test_the_same_command_in_another_process_gives_the_same_bytes(finished_llama, tiny_llama, tiny_text_file, tmp_path):
    """Sets and dictionaries come in another order there."""
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["prune", tiny_llama, "--text", tiny_text_file, "--keep", "60%", "--out", tmp_path / "out", *settings]
    where = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "darwinlm.cli", *map(str, words), "--until", "export"]
    subprocess.run(command, env=where, check=True, capture_output=True, timeout=280)
    weights = sorted(path.relative_to(finished_llama) for path in finished_llama.rglob("*.safetensors"))
    assert {Path("model/model.safetensors"), Path("stages/database/block_0003.safetensors")} <= set(weights)
    for name in weights:
        assert (tmp_path / "out" / name).read_bytes() == (finished_llama / name).read_bytes(), name
    for name in RESULTS:
        ours, theirs = (read_json(folder / name) for folder in (tmp_path / "out", finished_llama))
        assert ours["allocation"] == theirs["allocation"] if "allocation" in theirs else ours == theirs, name
