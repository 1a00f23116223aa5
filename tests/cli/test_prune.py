"""`darwinlm prune` when all is well, in a folder with names like the hub's, and without room on a disk or a device."""

import errno
import json
import os
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets
from tests.tiny.damage import assert_nothing_half_written

from darwinlm.planning import run_plan as planning
from darwinlm.runtime import memory
from darwinlm.runtime.run import Run
from darwinlm.steps.recover.train import TrainingLoop


def test_prune_prints_its_plan_three_lines_and_where_things_are_and_then_that_it_reuses(prune, command, tmp_path):
    ended = prune("--keep", "60%").succeeded()
    assert ended.err == ""
    assert "planned:" in ended.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    last = ended.out.splitlines()[-9:]
    assert " ".join(line.split(" ")[0] for line in last) == "size loss speed advice page model  darwinlm darwinlm"
    assert "of the block parameters" in last[0]
    assert re.search(r"KL [\d.]+ nats per token, where 0 means the same predictions", last[1])
    shown = command("show", tmp_path / "out").succeeded().out
    for word in ("dense", "uniform", "searched", "refit", "The capital of France is …"):
        assert word in shown
    for name in ("model", "report.html"):
        assert str(tmp_path / "out" / name) in ended.out
        assert (tmp_path / "out" / name).exists()
    times = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
    again = prune("--keep", "60%").succeeded()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {stage["name"]: stage["seconds"] for stage in summary["stages"]} == times
    assert again.out.count("already done, reused") == len(summary["stages"]) > 8
    assert "planned:" not in again.out


def test_the_plan_is_told_before_the_first_stage(prune, monkeypatch):
    monkeypatch.setattr(Run, "__call__", Mock(side_effect=KeyboardInterrupt))
    ended = prune()
    assert ended.code == 130
    amount = r"[\d.]+ [kMG]B"
    said = (
        rf"planned: [\d.]+ (s|min) if nothing else runs; up to {amount} of memory, {amount} of it without caches; up to"
    )
    assert re.search(rf"{said} {amount} of disk space", ended.out)


@pytest.mark.parametrize(("free", "lacks"), [(10, True), (1 << 40, False)])
def test_a_run_says_before_its_first_stage_whether_the_disk_has_room(free, lacks, prune, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Mock(free=free))
    monkeypatch.setattr(Run, "__call__", Mock(side_effect=KeyboardInterrupt))
    out = prune().out
    assert ("has 10 bytes free, about " in out) == lacks
    assert ("free some space, or choose another output folder" in out) == lacks


def test_a_sweep_announces_all_of_its_sizes(prune, monkeypatch):
    monkeypatch.setattr(Run, "__call__", Mock(side_effect=KeyboardInterrupt))
    one, two = (re.search(r"up to ([\d.]+) ([kM])B of disk", prune("--keep", keep).out) for keep in ("60%", "60%,50%"))
    first, both = (float(number) * {"k": 1e3, "M": 1e6}[unit] for number, unit in (one.groups(), two.groups()))
    assert 1.2 * first < both < 2 * first


def test_a_run_that_needs_more_memory_is_refused_before_its_first_stage(prune, monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "all_bytes", lambda _: 10_000_000)
    prune().refused("needs ", "of memory for each process", "but cpu has 10 MB")
    assert not (tmp_path / "out" / "stages").exists()


def test_a_speedup_out_of_reach_is_refused_before_the_latency_table(prune):
    ended = prune("--speedup", "1000x")
    ended.refused("speedup: 1000x is out of reach")
    assert "whole models are predicted" not in ended.out


def test_a_chat_template_that_fails_is_told_and_the_run_ends_well(prune, model_copy):
    (model_copy / "chat_template.jinja").write_text("{{ 1/0 }}")
    ended = prune("--set", "search.generations=1", model=model_copy)
    said = "evaluate: answers continue text: the model's chat template fails (division by zero)"
    assert said in " ".join(ended.succeeded().out.split())


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


def test_sizes_in_the_folder_of_a_run_use_its_database(prune, finished_copy):
    ended = prune("--keep", "70%,50%", "--until", "search", out=finished_copy).succeeded()
    assert "calibration and database: already done, reused" in ended.out
    assert not (finished_copy / "keep-50" / "stages" / "database").exists()
    assert (finished_copy / "keep-50" / "stages" / "search" / "manifest.json").exists()


def test_no_room_for_residual_streams(prune, tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setitem(memory.WORK, "streams", 0.0)
    ended = prune()
    ended.refused("the disk is full", "rerun the same command; finished work is kept")
    assert_nothing_half_written(tmp_path / "out")


TRAINING = ("recovery.tokens=512", "recovery.batch_tokens=128", "refit.tokens=0")


FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: ..."),
)


@pytest.mark.parametrize("error", FULL)
def test_one_message_names_stage_and_setting(error, command, tiny_llama, tiny_text_file, tmp_path, monkeypatch):
    settings = (*SETTINGS, *TRAINING, "compute.batch_tokens=128")
    common = ("prune", tiny_llama, "--keep", "60%", "--text", tiny_text_file, "--out", tmp_path / "out")
    arguments = (*common, *sets(settings))

    def full(self: TrainingLoop, step: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "update", full)
        ended = command(*arguments)
        ended.refused(
            "recovery: the memory of cpu is full: lower compute.batch_tokens (128)", "; finished work is kept"
        )
    assert command(*arguments).code == 0
