"""Recoveries that can't end well are refused before they train."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.recovering import Stopped, recover_tiny, stop_at
from tests.tiny.stages import run_stages
from tests.tiny.tokenizer import tiny_tokenizer

from darwinlm.recovery.sharding import sharding_mesh
from darwinlm.recovery.train import Training
from darwinlm.runs.recovery import recover
from darwinlm.runtime import artifact, parallel
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.errors import (
    ArtifactError,
    DataError,
    ModelError,
    ParallelError,
    RecipeError,
    StorageError,
)

WORK = Path("stages/recover-work")


@pytest.fixture
def refused(inputs, tmp_path, monkeypatch):
    """Recover, expecting an error before any training; other models and text can be given."""
    monkeypatch.setattr(Training, "run", lambda *_, **__: pytest.fail("it trained"))

    def run(error, message, *settings, small=inputs[0], teacher=inputs[1], out=tmp_path / "out"):
        with pytest.raises(error, match=message):
            recover_tiny(small, teacher, inputs[2], out, *settings)

    return run


def test_a_teacher_with_another_vocabulary(refused, tmp_path):
    refused(ModelError, "vocabulary of 310, but", teacher=tiny_checkpoint(tmp_path / "t", vocab_size=310))


def test_a_teacher_with_another_tokenizer(refused, inputs, tmp_path):
    teacher = shutil.copytree(inputs[1], tmp_path / "t")
    other = tiny_tokenizer()
    other.add_tokens(["<other>"])
    other.save_pretrained(teacher)
    refused(ModelError, "gives different tokens than", teacher=teacher)


def test_no_room_for_checkpoints(refused, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=10**5))
    refused(StorageError, r"2 checkpoints and a temporary one take .* MB, but .* are free: free some space")


@pytest.fixture(scope="module")
def interrupted(inputs, tmp_path_factory):
    """A recovery that was stopped in its sixth step."""
    out = tmp_path_factory.mktemp("interrupted") / "out"
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, 5, Stopped())
        with pytest.raises(Stopped):
            recover_tiny(*inputs, out)
    return out


def test_a_checkpoint_of_another_recovery(interrupted, refused, tmp_path):
    out = shutil.copytree(interrupted, tmp_path / "other")
    refused(
        ArtifactError, "belongs to an unfinished recovery with other settings", "recovery.learning_rate=0.004", out=out
    )
    assert (out / WORK / "training" / "checkpoint-4").is_dir()
    manifest = out / WORK / "training" / "checkpoint-4" / "manifest.json"
    found = read_json(manifest)
    artifact.write_json(manifest, {**found, "key": {**found["key"], "steps": 99}})
    refused(ArtifactError, "checkpoint-4 isn't complete, or belongs to another run", out=out)
    manifest.unlink()
    refused(ArtifactError, "checkpoint-4 isn't complete", out=out)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ("recovery.tokens=0", RecipeError, "recovery.tokens is 0: say how many"),
        (
            "recovery.tokens=20",
            RecipeError,
            "tokens is 20, too few for one step, which takes a sequence of 32 tokens for each of 1 proc",
        ),
        ("recovery.tokens=100k", DataError, "is too short: training needs 99840 tokens.*recovery.epochs"),
        ("text.sequence_length=512", RecipeError, "text.sequence_length is 512, but .* allows 256"),
        ("recovery.batch_tokens=500", RecipeError, r"recovery.batch_tokens is 500.*multiple of 32"),
    ],
)
def test_wrong_settings(refused, settings, error, message):
    refused(error, message, *settings.split())


def test_a_run_refuses_before_its_first_stage(tiny_llama, make_run, tmp_path):
    settings = ("recovery.tokens=2048", "recovery.batch_tokens=500")
    with pytest.raises(RecipeError, match="can't share evenly"):
        run_stages(make_run(tiny_llama, tmp_path / "out", *settings), "report")
    assert not (tmp_path / "out" / "stages").exists()


def test_no_teacher_is_named(inputs, tmp_path):
    with pytest.raises(RecipeError, match="no dense model is given: name the original model with --teacher"):
        recover(inputs[0], tmp_path / "out", tokens=100_000, text=str(inputs[2]))


def test_a_run_that_is_not_finished(refused, finished_llama, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(finished_llama / "darwinlm.json", folder)
    refused(ModelError, "isn't finished: it holds no exported model", small=folder)


@pytest.mark.parametrize("sizes", [[1, 1], [3, 3, 3, 1]])
def test_nodes_that_replicate_weights_must_be_equal(sizes, monkeypatch):
    """And have two processes or more, which share them."""
    monkeypatch.setattr(parallel, "size", lambda: len(sizes))
    monkeypatch.setattr(parallel, "local_size", lambda: sizes[0])
    monkeypatch.setattr(parallel, "gather", lambda _: sizes)
    with pytest.raises(ParallelError, match="the same number of processes, two or more, on each"):
        sharding_mesh("hsdp", torch.device("cpu"))
