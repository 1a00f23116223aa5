"""Databases built with `--until`, inspected, and used with `--database`: what is done, and what is refused."""

import errno
import json
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

BLOCKS = 4


@pytest.fixture
def copied(finished_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_llama, tmp_path / "db"))


def test_database_alone_then_inspect_then_prune(command, prune, tiny_llama, tiny_text_file, finished_llama, tmp_path):
    """The same model comes out as when the pipeline makes its own database."""
    out = tmp_path / "db"
    words = ("prune", tiny_llama, "--until", "database", "--out", out, "--text", tiny_text_file)
    command(*words, *sets(SETTINGS)).succeeded()
    assert {path.name for path in (out / "stages").iterdir()} == {"text", "plan", "gradients", "database"}
    ended = command("inspect", out).succeeded()
    assert "heads" in ended.out
    assert "units lattice" in ended.out
    assert "KL at 50%" in " ".join(ended.out.split())
    ended = command("inspect", out / "stages" / "database", "--json")
    about = json.loads(ended.out)
    assert about["blocks"] == BLOCKS
    reader = DatabaseReader(out / "stages" / "database", Checkpoint.open(tiny_llama), UnitsSettings())
    assert [(m["block"], m["kind"], m["heads_per_group"]) for m in about["modules"][:3]] == [
        (0, "attention", 1),
        (0, "attention", 2),
        (0, "mlp", None),
    ]
    for module in about["modules"]:
        curve = reader.errors(module["block"], module["kind"], module["heads_per_group"] or 1)
        assert module["columns"][-1] == module["width"] == len(curve) - 1
        for column, error in zip(module["columns"], module["errors"], strict=True):
            assert error == pytest.approx(float(curve[column] / curve[0]))
        assert len(module["losses"]) == len(module["columns"])
        assert module["losses"] == sorted(module["losses"], reverse=True)
        if module["kind"] == "mlp":
            block = module["block"]
            levels = next(each.levels for each in reader.modules if (each.block, each.kind) == (block, "mlp"))
            assert module["losses"][0] == reader.loss(block, "mlp", levels[0]) > 0
            assert module["losses"][-1] == pytest.approx(0, abs=1e-5)
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


@pytest.mark.parametrize("how", ["inspect", "prune"])
@pytest.mark.parametrize("damage", ["flipped", "gone", "not finished"])
def test_a_damaged_database(command, prune, copied, how, damage):
    path = copied / "stages" / "database" / "block_0002.safetensors"
    said = [str(path), "is damaged", "it was changed" if damage == "flipped" else "missing"]
    if damage == "flipped":
        flip(path)
    elif damage == "gone":
        path.unlink()
    else:
        (path.parent / "manifest.json").unlink()
        said = [f"the database in {copied} isn't finished", "rerun the command that created it"]
    ended = command("inspect", copied) if how == "inspect" else prune("--database", copied)
    ended.refused(*said)


def test_a_folder_that_is_no_database(command, tmp_path):
    command("inspect", tmp_path / "none").refused("there is no folder")
    command("inspect", tmp_path).refused(f"{tmp_path} holds no database", "--until database")


def test_a_file_that_changes_under_the_reader(copied, tiny_llama):
    """Hashes are looked at again when a block is read, not only when a run begins."""
    folder = copied / "stages" / "database"
    reader = DatabaseReader(folder, Checkpoint.open(tiny_llama), UnitsSettings())
    level = reader.modules[2].levels[3]
    reader.kept(0, "attention", level)
    flip(folder / "block_0001.safetensors")
    with pytest.raises(ArtifactError, match=r"block_0001\.safetensors is damaged \(it was changed"):
        reader.kept(1, "attention", level)
