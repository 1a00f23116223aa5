"""The disk space of a plan: what each step leaves, what a run says of it, and the message of a full disk."""

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.pruned import plain_checkpoint

from darwinlm.formats.gguf.file_sizes import predicted_sizes
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.pipeline import STEPS
from darwinlm.planning.run_plan import Row, most_disk, of_each_size, plan_here, rows_of
from darwinlm.planning.speeds import PassSpeed
from darwinlm.recipe import load_recipe, options
from darwinlm.runs.smallest import MOST
from darwinlm.runs.smallest import smallest as bisect
from darwinlm.runtime import disk
from darwinlm.runtime.amounts import size
from darwinlm.runtime.artifact import write_json
from darwinlm.runtime.errors import StorageError
from darwinlm.runtime.step import Cost
from darwinlm.steps.run_sizes import RunSizes

CPU = torch.device("cpu")
Usage = namedtuple("Usage", ["total", "used", "free"])


def rows(folder: Path, *assignments: str) -> dict[str, Cost]:
    recipe = load_recipe(None, (*SETTINGS, *assignments), {"model": str(folder), "budget.keep": "60%"})
    planned = rows_of(STEPS, RunSizes(Checkpoint.describe(folder), recipe), on_cpu=True, memory=1e12)
    return {row.step: row.cost for row in planned}


def weights_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_steps_leave_the_weights_that_they_state(tiny_llama: Path, finished_llama: Path) -> None:
    planned = rows(tiny_llama)
    folders = {name: finished_llama / "stages" / name for name in ("gradients", "stitch")}
    folders["export"] = finished_llama / "model"
    for name, folder in folders.items():
        headers = 4096 * len([*folder.rglob("*.safetensors")])
        assert 0.9 * planned[name].disk - headers < weights_in(folder) < 1.1 * planned[name].disk + headers, name
    refit = weights_in(finished_llama / "stages" / "refit")  # modules that the fit doesn't improve aren't written
    assert 0 < refit < 1.1 * planned["refit"].disk + 12288
    factors = planned["database"].disk
    assert factors < weights_in(finished_llama / "stages" / "database")  # which also has orders and errors


def test_a_vocabulary_and_a_training_take_space(tiny_llama: Path) -> None:
    plain = rows(tiny_llama)
    cut = rows(tiny_llama, "vocabulary=50%")
    assert plain["export"].disk < 0.9 * weights_in(tiny_llama)
    assert cut["export"].disk < plain["export"].disk < cut["export"].disk + cut["vocabulary"].disk
    trained = rows(tiny_llama, "recovery.tokens=512", "recovery.batch_tokens=128")["recover"]
    assert trained.disk == plain["export"].disk
    assert trained.scratch > 3 * 3 * trained.disk * 0.5  # checkpoints of trained weights and two moments


def test_space_adds_up_but_for_temporary_files() -> None:
    planned = [Row("a", Cost(0, {}, disk=3, scratch=10)), Row("b", Cost(0, {}, disk=4, scratch=1))]
    assert most_disk(planned) == 13
    assert most_disk(planned[1:]) == 5
    assert most_disk([]) == 0


def test_sizes_share_what_comes_before_the_search(tiny_llama: Path) -> None:
    recipe = load_recipe(None, SETTINGS, {"model": str(tiny_llama)})
    plan = plan_here(STEPS, RunSizes(Checkpoint.describe(tiny_llama), recipe), CPU, PassSpeed(1.0))
    assert [row.step for row in of_each_size(plan.rows)][:2] == ["search", "stitch"]
    assert plan.table.rows[-1][-1] == size(most_disk(plan.rows))


def test_a_bisection_tries_at_most_so_many_sizes() -> None:
    class Holds:
        def __init__(self, holds: bool) -> None:
            self.holds = holds

    for bound in (0.0, 0.3, 0.61, 0.95, 2.0):
        assert len(bisect(lambda keep, bound=bound: Holds(keep > bound), lambda *_: True).tried) <= MOST


def test_a_full_disk_says_how_much_the_run_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match=r"the disk is full: free some space, then rerun the same command"):
        write_json(tmp_path / "elsewhere" / "a.json", {})
    run = tmp_path / "out"
    (run / "stages").mkdir(parents=True)
    (run / "stages" / "weights").write_bytes(bytes(1000))
    disk.expect(run, 5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9000, 8000, 1000))
    with pytest.raises(StorageError, match=r"full: this run takes up to 5 kB in all: free about 3 kB, then rerun"):
        write_json(run / "stages" / "a.json", {})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9000, 0, 9000))  # a quota, or a wrong plan
    with pytest.raises(StorageError, match=r"full: free some space; this run takes up to 5 kB in all, then rerun"):
        write_json(run / "stages" / "a.json", {})


def test_a_bounded_file_has_a_row_in_the_plan(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra gguf")
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}
    model = plain_checkpoint(tmp_path / "model", "llama", **sizes)
    assert "file" not in rows(model)
    bound = predicted_sizes(Checkpoint.open(model))["q8_0"] - 100_000
    chosen = options(model=model, file=bound, ready_for="q8_0")
    recipe = load_recipe(None, (*SETTINGS, "units.mlp_multiple=32"), chosen)
    planned = rows_of(STEPS, RunSizes(Checkpoint.describe(model), recipe), on_cpu=True, memory=1e12)
    assert planned[-1].step == "file"
    cost = planned[-1].cost
    assert cost.operations > 0
    assert cost.disk == bound
    assert cost.scratch > cost.disk


def test_chats_are_planned_as_they_are_written_token_by_token(tiny_llama: Path) -> None:
    recipe = load_recipe(None, SETTINGS, {"model": str(tiny_llama), "text.evaluation_tokens": "16384"})
    sizes = RunSizes(Checkpoint.describe(tiny_llama), recipe)
    planned = rows_of(STEPS, sizes, on_cpu=True, memory=1e12)
    (chats,) = (row.cost for row in planned if row.step == "chats")
    read = sizes.operations(2 * 4096, 1 + 2 * sizes.kept, heads=3)
    assert chats.operations > 2 * read
