"""A finished run is continued by any name of its model, and isn't replaced by another model or size."""

import json
import shutil
from pathlib import Path

import pytest

from darwinlm.recipe import load_recipe
from darwinlm.runs.pruning import check_replaced
from darwinlm.runtime.errors import ArtifactError


@pytest.fixture
def check(finished_llama: Path):
    """Check a run with another model or budget against the finished one of `finished_llama`."""
    recipe = json.loads((finished_llama / "summary.json").read_text(encoding="utf-8"))["recipe"]

    def check(model: object, **budget: object) -> None:
        named = {
            "model": str(model),
            **{f"budget.{name}": value for name, value in (budget or {"keep": "60%"}).items()},
        }
        settings = [f"budget.{name}={value}" for name, value in recipe["budget"].items() if name == "tolerance"]
        check_replaced(load_recipe(None, settings, named), finished_llama, "delete that one")

    return check


def test_every_name_of_a_folder_is_its_model(check, tiny_llama: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "link").symlink_to(tiny_llama)
    shutil.copytree(tiny_llama, tmp_path / "copies" / "copy")
    monkeypatch.chdir(tmp_path)
    for name in (tiny_llama, f"{tiny_llama}/", "link", "./link/", "copies/copy", tmp_path / "copies" / ".." / "link"):
        check(name)
    check(tiny_llama, keep=0.6)


def test_other_models_and_sizes_are_others(check, tiny_llama: Path, tiny_folder, tmp_path: Path) -> None:
    for name in (tiny_folder("qwen2"), tmp_path / "nowhere", "owner/name"):
        with pytest.raises(ArtifactError, match="holds a finished run with another model: "):
            check(name)
    with pytest.raises(ArtifactError, match="holds a finished run with another budget: "):
        check(tiny_llama, keep="60.1%")
