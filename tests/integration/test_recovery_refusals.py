"""Recoveries that can't end well are refused before they train."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.recovering import Stopped, recover_tiny, stop_at
from tests.tiny.tokenizer import tiny_tokenizer

from darwinlm import artifact
from darwinlm.artifact import read_json
from darwinlm.errors import (
    ArtifactError,
    DataError,
    MissingExtraError,
    ModelError,
    RecipeError,
    StorageError,
)
from darwinlm.recipe import RecoverySettings
from darwinlm.recovery.checks import check_sharding
from darwinlm.recovery.trainer import RecoveryTrainer

WORK = Path("stages/recover-work")


@pytest.fixture
def refused(inputs, tmp_path, monkeypatch):
    """Recover, expecting an error before any training; other models and text can be given."""
    monkeypatch.setattr(RecoveryTrainer, "train", lambda *_, **__: pytest.fail("it trained"))

    def run(error, message, *settings, small=inputs[0], teacher=inputs[1], text=inputs[2], out=tmp_path / "out"):
        with pytest.raises(error, match=message):
            recover_tiny(small, teacher, text, out, *settings)

    return run


def test_a_teacher_with_another_vocabulary(refused, tmp_path):
    refused(ModelError, "vocabulary of 310, but", teacher=tiny_checkpoint(tmp_path / "t", vocab_size=310))


def test_a_teacher_with_another_tokenizer(refused, inputs, tmp_path):
    teacher = shutil.copytree(inputs[1], tmp_path / "t")
    other = tiny_tokenizer()
    other.add_tokens(["<other>"])
    other.save_pretrained(teacher)
    refused(ModelError, "makes other tokens than", teacher=teacher)


def test_sequences_that_are_longer_than_the_model_allows(refused):
    refused(RecipeError, "recovery.sequence_length is 512, but .* allows 256", "recovery.sequence_length=512")


def test_text_that_runs_out(refused):
    refused(DataError, "runs out: training wants 99840 tokens.*recovery.epochs", "recovery.tokens=100k")


def test_no_room_for_checkpoints(refused, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**5))
    refused(StorageError, r"2 checkpoints and one on its way take .* GB, but 0.0 GB are free.*keep_checkpoints")


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
    refused(ArtifactError, "belongs to a recovery with other settings", "recovery.seed=3", out=out)
    assert (out / WORK / "training" / "checkpoint-4").is_dir()
    run = out / WORK / "training" / "checkpoint-4" / "run.json"
    artifact.write_json(run, {**read_json(run), "steps": 99})
    refused(ArtifactError, r"checkpoint-4 belongs to another run \(steps differ\)", out=out)
    run.unlink()
    refused(ArtifactError, "checkpoint that this recovery didn't write", out=out)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("recovery.tokens=0", "recovery.tokens is 0: say how many"),
        ("recovery.tokens=many", "recovery.tokens: .*'many'"),
        ("recovery.tokens=100", "less than one step of batch_tokens"),
        ("recovery.distillation=0", "distillation and cross_entropy are both 0"),
        ("recovery.batch_tokens=500", r"recovery.batch_tokens is 500.*multiple of 96"),
        ("recovery.schedule=linear", "recovery.schedule"),
        ("rounds=[50%, 75%]", "rounds: shares must fall"),
        ("rounds=[75%, 60%]", "budget.keep is 50%, but rounds end at 60%"),
    ],
)
def test_wrong_settings(refused, setting, message):
    more = ("recovery.micro_tokens=96",) if "batch" in setting else ("budget.keep=50%",) if "60%" in setting else ()
    refused(RecipeError, message, setting, *more)


def test_weights_that_cannot_be_dealt_out(refused):
    shard = "recovery.sharding=fsdp"
    refused(
        RecipeError, "deals out weights that are trained, not adapters .*lora_rank=4", shard, "recovery.lora_rank=4"
    )
    with pytest.raises(RecipeError, match=r"recovery\.sharding=fsdp deals weights out over GPUs only"):
        check_sharding(RecoverySettings(sharding="fsdp"), "cpu", 2)
    for device, processes in (("cpu", 1), ("cuda", 1), ("cuda", 2)):
        check_sharding(RecoverySettings(sharding="fsdp"), device, processes)


@pytest.mark.parametrize(
    ("setting", "package"),
    [("recovery.lora_rank=2", "peft"), ("recovery.log_to=[trackio]", "trackio"), ("recovery.log_to=[wandb]", "wandb")],
)
def test_packages_that_are_missing(refused, monkeypatch, setting, package):
    from darwinlm.recovery import checks

    whole = checks.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == package else whole(name))
    refused(MissingExtraError, rf"needs the package '{package}': pip install 'darwinlm\[", setting)


def test_no_teacher_is_named(inputs, tmp_path):
    from darwinlm.runs.recovery import recover

    with pytest.raises(RecipeError, match="no dense model is named: give --teacher"):
        recover(inputs[0], tmp_path / "out", tokens=100_000, text=str(inputs[2]))


def test_a_run_that_is_not_finished(inputs, finished_llama, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(finished_llama / "darwinlm.json", folder)
    with pytest.raises(ModelError, match="holds no finished model: run the same"):
        recover_tiny(folder, *inputs[1:], tmp_path / "out")
