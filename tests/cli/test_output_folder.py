"""Output folders of others, damaged and half-made ones: nothing is lost, and the same command goes on."""

import json
import re
import shutil
import signal
import sys
import threading
from typing import Any

import pytest
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.damage import flip

import darwinlm
from darwinlm.runtime.artifact import file_digest
from darwinlm.runtime.errors import RecipeError


def test_an_output_folder_that_holds_something_else(prune, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years of work")
    prune().refused("is not empty and not a run", "choose a new or empty output folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_output_folder_that_is_a_file_or_below_one(prune, tmp_path):
    (tmp_path / "out").write_text("a file")
    prune().refused("is a file: choose another output folder")
    prune(out=tmp_path / "out" / "below").refused("can't write")
    assert (tmp_path / "out").read_text() == "a file"


@pytest.mark.parametrize("marker", ["{}", "[]", '{"made_by": "somebody"}', "{"])
def test_an_output_folder_of_somebody_else(prune, tmp_path, marker):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "darwinlm.json").write_text(marker)
    prune().refused(
        "darwinlm.json", "was not written by darwinlm: choose another output folder" if "made_by" in marker else ""
    )


def test_two_runs_in_one_folder(prune, holder, tmp_path):
    """The second is refused as long as the first one lives, and changes nothing."""
    assert prune("--until", "text").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    first = holder("hold_folder", tmp_path / "out")
    prune().refused("is in use by another process", "wait until it has finished")
    after = {path: path.stat().st_mtime_ns for path in before}
    first.kill()
    first.wait()
    assert after == before
    assert prune("--until", "database").code == 0


def test_a_users_own_file_in_the_model(prune, finished_copy):
    """Only what a run wrote is replaced, what the system hides, and compiled Python."""
    for name in (".cache/upload.metadata", "m.pyc", "mine.gguf", ".git/HEAD"):
        own = finished_copy / "model" / name
        own.parent.mkdir(exist_ok=True)
        own.touch()
        if name in ("mine.gguf", ".git/HEAD"):
            prune("--keep", "50%", "--overwrite").refused(f"{own} was not written by a run", "is kept: move it away")
            own.unlink()
    assert prune("--keep", "50%", "--overwrite").code == 0


def test_a_gguf_file_is_not_converted_behind_a_link(prune, gguf_bytes, tmp_path):
    (tmp_path / "m.gguf").write_bytes(gguf_bytes)
    (tmp_path / "home").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "darwinlm.json").write_text('{"made_by": "darwinlm", "version": "0.1.0"}')
    (tmp_path / "out" / "stages").symlink_to(tmp_path / "home")
    prune(model=tmp_path / "m.gguf").refused("stages is a symbolic link")
    assert not list((tmp_path / "home").iterdir())


def test_a_stage_that_is_a_link_to_another_runs(prune, tmp_path):
    assert prune("--until", "text").code == 0
    stage = tmp_path / "out" / "stages" / "text"
    kept = stage.rename(tmp_path / "elsewhere")
    stage.symlink_to(kept)
    assert prune("--until", "text").code == 0, "a stage may lie on another disk"
    prune("--set", "text.evaluation_tokens=512").refused(f"{stage} is a symbolic link", "remove the link")
    assert (kept / "manifest.json").exists()
    stage.unlink()
    stage.symlink_to(tmp_path / "nothing")
    prune().refused(str(stage), "is a broken link")


@pytest.mark.parametrize(
    "name",
    [
        "text/calibration/tokens.safetensors",
        "database/block_0001.safetensors",
        "search/result.json",
        "refit/record.json",
        "search/manifest.json",
    ],
)
def test_a_damaged_artifact_of_an_earlier_stage(prune, finished_copy, name):
    """The message names the file; doing what it says mends the run."""
    path = finished_copy / "stages" / name
    path.write_text("{") if path.name == "manifest.json" else flip(path)
    ended = prune("--keep", "60%")
    ended.refused(str(path), "is damaged", "rerun the same command")
    folder = re.search(r"delete the folder (\S+) and", ended.err)
    assert folder is not None
    shutil.rmtree(folder[1])
    assert prune("--keep", "60%", "--until", "refit").code == 0


@pytest.mark.parametrize("name", ["search/result.json", "refit/record.json"])
def test_a_result_of_another_kind_with_its_hash(prune, finished_copy, name):
    path = finished_copy / "stages" / name
    path.write_text("null")
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["files"][path.name] = file_digest(path)
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    prune("--keep", "60%").refused(f"{path} is damaged (it holds something else")


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(prune, tmp_path, monkeypatch):
    def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("sys.unraisablehook", sys.unraisablehook)
    monkeypatch.setattr("threading.excepthook", threading.excepthook)
    with monkeypatch.context() as patch:
        patch.setattr("darwinlm.steps.search.search.search", interrupted)
        ended = prune("--keep", "50 %")
    assert ended.code == 130
    (line,) = ended.err.strip().splitlines()
    for part in ("interrupted", "finished work is kept", "darwinlm prune", f"--out {tmp_path / 'out'}"):
        assert part in line
    assert "--keep '50 %'" in line, "as a shell takes it"
    assert prune("--keep", "50 %", "--until", "text").code == 0


def test_a_tilde_is_the_home_folder(prune, tmp_path, monkeypatch):
    """Shells don't expand it in --out=~/runs, nor does Python in a string."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    prune("--until", "text", out="~/out").succeeded()
    with pytest.raises(RecipeError, match=f"can't read the recipe {tmp_path}/none.yaml"):
        darwinlm.load_recipe("~/none.yaml")
    assert (tmp_path / "out" / "stages" / "text").is_dir()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("place", ["model", "--out"])
def test_a_tilde_with_a_name_that_is_no_user(command, tiny_llama, place):
    words = ("~nobody-here/x",) if place == "model" else (tiny_llama, "--out", "~nobody-here/x")
    command("prune", *words).refused("~nobody-here/x: there is no such user; write the whole path")


def test_a_finished_run_is_not_replaced_by_another_size(command, finished_copy, tiny_llama, tiny_text_file):
    before = (finished_copy / "summary.json").read_bytes()
    words = ("prune", tiny_llama, "--text", tiny_text_file, "--out", finished_copy, "--keep", "70%")
    command(*words).refused("a finished run with another budget", "--out", "--overwrite")
    assert (finished_copy / "summary.json").read_bytes() == before
    quick = [word for setting in SETTINGS for word in ("--set", setting)]
    assert command(*words, "--overwrite", "--until", "text", *quick).code == 0


def test_the_summary_of_another_version_is_written_again(prune, command, finished_copy):
    summary = finished_copy / "summary.json"
    known = json.loads(summary.read_text())
    summary.write_text(json.dumps(known | {"of_another_version": 1}))
    command("show", finished_copy).refused("another version of darwinlm wrote it", "rerun the command that did")
    prune("--keep", "60%").succeeded()
    assert json.loads(summary.read_text()).keys() == known.keys()
