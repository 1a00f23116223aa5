"""What lies in the current folder or in the environment decides nothing: commands end well, and say what they say."""

import json
import shutil
from pathlib import Path

import pytest


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
