"""Databases built with `--until`, and used with `--database`: what is done, and what is refused."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint, tiny_text
from tests.tiny.command import sets
from tests.tiny.damage import assert_nothing_half_written, flip

from darwinlm.database.store import DatabaseReader
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import UnitsSettings
from darwinlm.runtime import memory
from darwinlm.runtime.errors import ArtifactError


@pytest.fixture
def copied(finished_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_llama, tmp_path / "db"))


def test_database_alone_then_prune(command, prune, tiny_llama, tiny_text_file, finished_llama, tmp_path):
    """The same model comes out as when the pipeline makes its own database."""
    out = tmp_path / "db"
    words = ("prune", tiny_llama, "--until", "database", "--out", out, "--text", tiny_text_file)
    command(*words, *sets(SETTINGS)).succeeded()
    assert {path.name for path in (out / "stages").iterdir()} == {"text", "plan", "gradients", "database"}
    reader = DatabaseReader(out / "stages" / "database", Checkpoint.open(tiny_llama), UnitsSettings())
    for module in reader.modules:
        losses = [reader.loss(module.block, module.kind, level) for level in module.levels]
        assert losses[0] > 0 == losses[-1]
        if module.kind == "mlp":
            assert losses == sorted(losses, reverse=True)
    ended = prune("--database", out, "--keep", "60%").succeeded()
    assert "database: using" in ended.out
    assert not (tmp_path / "out" / "stages" / "database").exists()
    weights = "model/model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (finished_llama / weights).read_bytes()


def test_no_room_for_residual_streams(prune, tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setitem(memory.WORK, "streams", 0.0)
    ended = prune()
    ended.refused("the disk is full", "rerun the same command; finished work is kept")
    assert_nothing_half_written(tmp_path / "out")


def test_a_database_of_another_model(prune, finished_llama, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", "llama", rms_norm_eps=1e-5)
    prune("--database", finished_llama, model=other).refused(
        str(finished_llama), "was built from another model", str(other)
    )
    assert_nothing_half_written(tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["units.attention=query_head"], ["was built for units.attention=lattice, not query_head"]),
        (
            ["search.seed=1", "text.evaluation_tokens=12288"],
            ["was calibrated on", "documents that are now", "the seed of the database"],
        ),
    ],
)
def test_a_database_of_other_units_or_one_that_saw_the_evaluation_text(prune, finished_llama, settings, parts):
    prune("--database", finished_llama, *sets(settings)).refused(str(finished_llama), *parts)


def test_a_database_serves_every_grid_of_levels_and_other_text(prune, finished_llama, tmp_path):
    grid = sets(("units.mlp_multiple=16", "units.levels=[75%, 50%, 25%]", "budget.tolerance=0.1"))
    assert prune("--database", finished_llama, *grid, "--until", "search").code == 0
    new = tiny_text(tmp_path / "new.txt", seed=9)
    assert prune("--database", finished_llama, "--until", "search", text=new).code == 0


@pytest.mark.parametrize("damage", ["flipped", "gone", "not finished"])
def test_a_damaged_database(prune, copied, damage):
    path = copied / "stages" / "database" / "block_0002.safetensors"
    said = [str(path), "is damaged", "it was changed" if damage == "flipped" else "missing"]
    if damage == "flipped":
        flip(path)
    elif damage == "gone":
        path.unlink()
    else:
        (path.parent / "manifest.json").unlink()
        said = [f"the database in {copied} isn't finished", "rerun the command that created it"]
    prune("--database", copied).refused(*said)


def test_a_folder_that_is_no_database(prune, tmp_path):
    prune("--database", tmp_path / "none").refused("there is no folder")
    prune("--database", tmp_path).refused(f"{tmp_path} holds no database", "--until database")


def test_a_file_that_changes_under_the_reader(copied, tiny_llama):
    """Hashes are looked at again when a block is read, not only when a run begins."""
    folder = copied / "stages" / "database"
    reader = DatabaseReader(folder, Checkpoint.open(tiny_llama), UnitsSettings())
    level = reader.modules[2].levels[3]
    reader.kept(0, "attention", level)
    flip(folder / "block_0001.safetensors")
    with pytest.raises(ArtifactError, match=r"block_0001\.safetensors is damaged \(it was changed"):
        reader.kept(1, "attention", level)
