"""Runs that were interrupted or killed end like others, and what is finished is reused."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from darwinlm import artifact
from darwinlm.console import Reporter
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.pipeline import run_stages
from darwinlm.report.summary import Summary


class Stopping(Reporter):
    """Raises KeyboardInterrupt at one call of `advance`, and counts the calls."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__(Console(quiet=True))
        self.at = at
        self.calls = 0
        self.titles: list[str] = []
        self.title = ""

    def stage(self, title: str) -> Any:
        self.title = title
        return super().stage(title)

    def advance(self, done: int, total: int) -> None:
        self.calls += 1
        self.titles.append(self.title)
        if self.calls == self.at:
            raise KeyboardInterrupt


TIMES = {"seconds", "stages", "machine", "evaluations"}


def figures(tree: Any) -> Any:
    """A summary without what a clock says, and without the count of evaluations, which has a test of its own."""
    if isinstance(tree, BaseModel):
        tree = tree.model_dump(mode="json")
    if isinstance(tree, dict):
        return {k: figures(v) for k, v in tree.items() if k not in TIMES and "per_second" not in k and k != "reused"}
    return [figures(value) for value in tree] if isinstance(tree, list) else tree


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def uninterrupted(
    request: pytest.FixtureRequest, tiny_folder, make_run, tmp_path_factory
) -> tuple[Path, Path, Summary, Stopping]:
    """Model, output folder, summary and what its reporter saw."""
    model, folder = tiny_folder(request.param), tmp_path_factory.mktemp("uninterrupted") / "out"
    reporter = Stopping()
    summary = run_stages(make_run(model, folder, reporter=reporter), "report").report
    return model, folder, summary, reporter


def assert_same_outcome(folder: Path, summary: Summary, other: Path, expected: Summary) -> None:
    assert summary.allocation == expected.allocation
    names = [path.relative_to(other) for path in other.rglob("*.safetensors")]
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors")) == sorted(names)
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert figures(summary.models) == figures(expected.models)
    assert figures(summary.search) == figures(expected.search)
    assert figures(summary.refit) == figures(expected.refit)
    assert figures(summary) == figures(expected)
    leftovers = [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert leftovers == []


@pytest.mark.parametrize("share", [0.02, 0.15, 0.3, 0.45, 0.6, 0.8, 0.9, 1.0])
def test_a_run_that_was_interrupted_ends_like_one_that_was_not(uninterrupted, make_run, tmp_path, share):
    model, other, expected, counted = uninterrupted
    at = max(1, round(share * counted.calls))
    with pytest.raises(KeyboardInterrupt):
        run_stages(make_run(model, tmp_path / "out", reporter=Stopping(at)), "report")
    assert not (tmp_path / "out" / "summary.json").exists()
    summary = run_stages(make_run(model, tmp_path / "out"), "report").report
    assert_same_outcome(tmp_path / "out", summary, other, expected)


def test_the_interrupts_above_fall_into_every_long_stage(uninterrupted):
    *_, counted = uninterrupted
    shares = (0.02, 0.15, 0.3, 0.45, 0.6, 0.8, 0.9, 1.0)
    titles = {counted.titles[max(1, round(share * counted.calls)) - 1] for share in shares}
    assert "calibration and database" in titles
    assert len(titles) >= 3
    assert set(counted.titles) == {
        "output gradients",
        "calibration and database",
        "search",
        "refit",
        "evaluate",
    }


def test_an_interrupted_search_counts_every_evaluation_once(uninterrupted, make_run, tmp_path):
    """The report says how many candidates were evaluated: an interrupt mustn't make the search look cheaper."""
    model, _, expected, counted = uninterrupted
    at = counted.titles.index("search") + 2
    assert counted.titles[at - 1] == "search"
    with pytest.raises(KeyboardInterrupt):
        run_stages(make_run(model, tmp_path / "out", reporter=Stopping(at)), "search")
    summary = run_stages(make_run(model, tmp_path / "out"), "report").report
    counts, expected_counts = (
        [generation.evaluations for generation in found.search.history] for found in (summary, expected)
    )
    assert counts == expected_counts


def test_a_run_that_is_interrupted_again_and_again_ends_all_the_same(uninterrupted, make_run, tmp_path):
    model, other, expected, _ = uninterrupted
    rng = random.Random(0)
    for _ in range(30):
        try:
            made = run_stages(make_run(model, tmp_path / "out", reporter=Stopping(rng.randint(4, 12))), "report")
        except KeyboardInterrupt:
            continue
        assert_same_outcome(tmp_path / "out", made.report, other, expected)
        return
    pytest.fail("no progress is made between interrupts")


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "after it"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_run_that_was_killed_at_a_write(uninterrupted, make_run, tmp_path, monkeypatch, share, after):
    model, other, expected, _ = uninterrupted
    original, counts = artifact.write_atomically, {"all": 0}
    n_writes = sum(1 for path in other.rglob("*") if path.is_file()) - 12  # but for what transformers writes
    at = max(1, round(share * n_writes))

    def write(path: Path, how: Any) -> None:
        counts["all"] += 1
        if counts["all"] == at and not after:
            raise KeyboardInterrupt
        original(path, how)
        if counts["all"] == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "write_atomically", write)
        with pytest.raises(KeyboardInterrupt):
            run_stages(make_run(model, tmp_path / "out"), "report")
    summary = run_stages(make_run(model, tmp_path / "out"), "report").report
    assert_same_outcome(tmp_path / "out", summary, other, expected)


def refused(self: nn.Linear, inputs: Tensor) -> Tensor:
    raise AssertionError("a model was run")


@pytest.fixture
def copied(finished_llama, tmp_path) -> Path:
    """A finished run that may be changed."""
    return Path(shutil.copytree(finished_llama, tmp_path / "out"))


def stages_done(summary: Summary) -> dict[str, bool]:
    """For each stage whether it was reused."""
    return {stage.name: stage.reused for stage in summary.stages}


STAGES = ("text", "plan", "saliency", "database", "search", "stitch", "refit", "export", "evaluate")
ALL_REUSED = dict.fromkeys(STAGES, True)


def test_a_second_run_does_nothing_but_the_report(tiny_llama, make_run, tmp_path, monkeypatch):
    before = run_stages(make_run(tiny_llama, tmp_path / "out"), "report").report
    weights = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    monkeypatch.setattr(nn.Linear, "forward", refused)
    summary = run_stages(make_run(tiny_llama, tmp_path / "out"), "report").report
    assert stages_done(summary) == ALL_REUSED
    assert figures(summary) == figures(before)
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "out" / "report.html").exists()


def test_a_run_folder_that_was_moved_is_reused(copied, tiny_llama, make_run, monkeypatch):
    monkeypatch.setattr(nn.Linear, "forward", refused)
    assert stages_done(run_stages(make_run(tiny_llama, copied), "report").report) == ALL_REUSED


def test_a_model_that_was_moved_is_the_same_model(copied, tiny_llama, make_run, tmp_path, monkeypatch):
    """Its weights and configuration are hashed, so its path needn't be: relative and absolute ones mean the same."""
    moved = shutil.copytree(tiny_llama, tmp_path / "moved")
    assert Checkpoint.open(moved).digest == Checkpoint.open(tiny_llama).digest
    monkeypatch.setattr(nn.Linear, "forward", refused)
    assert run_stages(make_run(moved, copied), "refit").refit is not None


def test_a_change_to_the_search_keeps_text_and_database(copied, tiny_llama, make_run):
    summary = run_stages(make_run(tiny_llama, copied, "search.generations=2"), "report").report
    done = stages_done(summary)
    assert [name for name, reused in done.items() if reused][:4] == list(STAGES[:4])
    assert not done["search"]


def test_a_change_to_the_budget_keeps_the_database(copied, tiny_llama, make_run):
    summary = run_stages(make_run(tiny_llama, copied, keep="40%"), "report").report
    done = stages_done(summary)
    assert done["text"]
    assert done["database"]
    assert not any(done[name] for name in ("plan", "search", "stitch", "refit", "export", "evaluate"))
    assert summary.budget.block_params <= 0.4 * summary.budget.dense_block_params


def test_a_change_to_the_prompts_keeps_the_model(copied, tiny_llama, make_run):
    summary = run_stages(make_run(tiny_llama, copied, "evaluation.prompts=['a letter']"), "report").report
    done = stages_done(summary)
    assert [name for name, reused in done.items() if not reused] == ["evaluate"]
    assert summary.prompts == ("a letter",)


def test_another_model_starts_afresh(copied, tiny_folder, make_run):
    summary = run_stages(make_run(tiny_folder("qwen2"), copied), "report").report
    assert not any(reused for name, reused in stages_done(summary).items() if name != "text")


def test_until_stops_and_a_later_run_goes_on(tiny_llama, make_run, tmp_path):
    made = run_stages(make_run(tiny_llama, tmp_path / "out"), "search")
    assert list(vars(made)) == ["vocabulary", "text", "plan", "database", "search"]
    assert not (tmp_path / "out" / "model").exists()
    summary = run_stages(make_run(tiny_llama, tmp_path / "out"), "report").report
    assert [name for name, reused in stages_done(summary).items() if reused] == list(STAGES[:5])


@pytest.mark.parametrize("damage", ["deleted", "flipped", "without weights", "emptied"])
def test_a_model_folder_that_was_changed_is_exported_again(copied, tiny_llama, make_run, damage):
    """People move and delete what they were given."""
    folder, weights = copied / "model", copied / "model" / "model.safetensors"
    original = weights.read_bytes()
    if damage == "deleted":
        shutil.rmtree(folder)
    elif damage == "emptied":
        shutil.rmtree(folder)
        folder.mkdir()
    elif damage == "without weights":
        weights.unlink()
    else:
        data = bytearray(original)
        data[-1] ^= 0x40
        weights.write_bytes(data)
    run_stages(make_run(tiny_llama, copied), "report")
    assert weights.read_bytes() == original
    AutoModelForCausalLM.from_pretrained(folder)
