"""Runs that were interrupted or killed end like others, and what is finished is reused."""

import io
import shutil
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console
from tests.tiny.damage import flip
from tests.tiny.stages import result, run_stages
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from darwinlm.pipeline import build, make, plan, read_inputs
from darwinlm.report.summary import Summary
from darwinlm.runs.finished import read_summary
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import CheckpointError
from darwinlm.steps.text.step import Text

TIMES = {"seconds", "stages", "machine", "evaluations"}


def figures(tree: Any) -> Any:
    """A summary without what a clock says, and without the count of evaluations (see test_gradient_search.py)."""
    if isinstance(tree, BaseModel):
        tree = tree.model_dump(mode="json")
    if isinstance(tree, dict):
        return {k: figures(v) for k, v in tree.items() if k not in TIMES and "per_second" not in k and k != "reused"}
    return [figures(value) for value in tree] if isinstance(tree, list) else tree


def refused(self: nn.Linear, inputs: Tensor) -> Tensor:
    raise AssertionError("a model was run")


def stages_done(summary: Summary) -> dict[str, bool]:
    """For each stage whether it was reused."""
    return {stage.name: stage.reused for stage in summary.stages}


STAGES = ("text", "gradients", "database", "search", "stitch", "refit", "export", "chats", "evaluate")
ALL_REUSED = dict.fromkeys(STAGES, True)


def test_a_second_run_in_a_folder_that_was_moved_does_nothing_but_the_report(
    finished_copy, finished_llama, tiny_llama, make_run, monkeypatch
):
    (finished_copy / "report.html").unlink()
    monkeypatch.setattr(nn.Linear, "forward", refused)
    summary = run_stages(make_run(tiny_llama, finished_copy), "report").report
    assert stages_done(summary) == ALL_REUSED
    assert figures(summary) == figures(read_summary(finished_llama / "summary.json"))
    weights = "model/model.safetensors"
    assert (finished_copy / weights).read_bytes() == (finished_llama / weights).read_bytes()
    assert (finished_copy / "report.html").exists()


@pytest.mark.parametrize(
    ("model_type", "setting", "keep", "reused", "redone"),
    [
        ("llama", "search.generations=3", "40%", ["text", "database"], STAGES[3:]),
        ("llama", "refit.tokens=512", "60%", STAGES[:5], STAGES[5:]),
        ("llama", "text.looking_back=0", "60%", [], STAGES),
        ("qwen2", "search.generations=3", "60%", [], STAGES[1:]),
    ],
)
def test_what_a_change_leaves_untouched_is_reused(
    finished_copy, tiny_folder, make_run, model_type, setting, keep, reused, redone
):
    run = make_run(tiny_folder(model_type), finished_copy, setting, keep=keep)
    summary = run_stages(run, "report").report
    done = stages_done(summary)
    assert all(done[name] for name in reused)
    assert not any(done[name] for name in redone)
    assert summary.budget.block_params <= run.recipe.budget.keep * summary.budget.dense_block_params


@pytest.mark.parametrize("damage", ["flipped", "without a tokenizer", "emptied"])
def test_a_model_folder_that_was_changed_is_exported_again(finished_copy, tiny_llama, make_run, damage):
    """People move and delete what they were given."""
    folder, weights = finished_copy / "model", finished_copy / "model" / "model.safetensors"
    original = weights.read_bytes()
    if damage == "flipped":
        flip(weights)
    elif damage == "without a tokenizer":
        (folder / "tokenizer.json").unlink()
    else:
        shutil.rmtree(folder)
    if damage == "emptied":
        folder.mkdir()
    run_stages(make_run(tiny_llama, finished_copy), "report")
    assert weights.read_bytes() == original
    assert (folder / "tokenizer.json").is_file()
    AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("after", ["text", "database"])
def test_a_model_that_changes_during_a_run_is_noticed(model_copy, make_run, tmp_path, name, after):
    """Else the saved model would be a mixture of two."""
    run = make_run(model_copy, tmp_path / "out", "refit.tokens=0")
    inputs = read_inputs(run)
    database = build(run, inputs) if after == "database" else None
    path = model_copy / name
    flip(path) if name == "model.safetensors" else path.write_text(path.read_text() + " ")
    with pytest.raises(CheckpointError, match=rf"{name}: it was changed during this run.* into a new folder"):
        make(run, inputs, plan(run, inputs), database or build(run, inputs))
    assert not (tmp_path / "out" / "model").exists()


def test_a_result_of_another_version_is_done_again_with_a_word(tmp_path, tiny_llama, make_run, monkeypatch):
    def said():
        console = Console(file=io.StringIO(), width=200)
        result(make_run(tiny_llama, tmp_path / "out", reporter=Reporter(console)), "text")
        return console.file.getvalue()

    said()
    assert "text: already done, reused" in said()
    monkeypatch.setattr(Text, "version", Text.version + 1)
    assert "text: done by another version of darwinlm, redone" in said()
    monkeypatch.setattr("darwinlm.runtime.artifact.version", lambda name: "4.0")
    assert "text: done by another version of transformers, redone" in said()
