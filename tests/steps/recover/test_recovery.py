"""Recovery: training, resuming after a kill, several processes, and what can't end well is refused before it trains."""

import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.command import sets
from tests.tiny.process import start_together, together
from tests.tiny.recovering import RECOVERY, Stopped, losses, recover_tiny, stop_at
from tests.tiny.stages import run_stages
from tests.tiny.tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe
from darwinlm.runs import recovery
from darwinlm.runs.finished import read_summary
from darwinlm.runs.recovery import recover
from darwinlm.runtime import artifact, memory, parallel
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.errors import (
    ArtifactError,
    DataError,
    DeviceMemoryError,
    ModelError,
    ParallelError,
    RecipeError,
    StorageError,
)
from darwinlm.steps.recover import recovery_run
from darwinlm.steps.recover.recovery_figures import RecoveryFigures
from darwinlm.steps.recover.sharding import sharding_mesh
from darwinlm.steps.recover.train import TrainingLoop
from darwinlm.steps.run_sizes import RunSizes

WORK, PROGRAM = Path("stages/recover-work"), "tests.tiny.recovering"
MICRO = ("--set", "compute.batch_tokens=64")
STEPS = ("recovery.tokens=2048", "recovery.batch_tokens=512", "recovery.epochs=2")


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """An uninterrupted recovery: its folder and its summary."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return out, recover_tiny(*inputs, out)


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def assert_same(left, right, tolerance=0.0):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert (tensor - right[name]).abs().max() <= tolerance, name


def assert_same_recovery(out, other, summary, expected):
    """Up to the rounding of sums over processes."""
    assert losses(summary) == pytest.approx(losses(expected), rel=1e-4)
    assert summary.models["recovered"].kl == pytest.approx(expected.models["recovered"].kl, rel=1e-3)
    assert_same(weights(out), weights(other), tolerance=2e-3)


def test_it_brings_the_model_nearer_to_the_dense_one(whole, inputs):
    out, summary = whole
    assert summary.of(RecoveryFigures).steps == 12
    assert summary.of(RecoveryFigures).tokens == 6144
    models = summary.models
    assert models["recovered"].kl < 0.97 * models["before"].kl
    held_out = [point.eval_kl for point in summary.of(RecoveryFigures).log if point.eval_kl is not None]
    assert len(held_out) == 4
    assert held_out[-1] < held_out[0]
    before, after = load_file(inputs[0] / "model.safetensors"), weights(out)
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], tensor) for name, tensor in after.items())
    assert not (out / WORK).exists()
    assert not list(out.rglob("*.pt")), "nothing is a pickle"
    AutoModelForCausalLM.from_pretrained(out / "model")


def test_memory_is_checked_before_text_is_packed(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(recovery_run, "pack_documents", lambda *_, **__: pytest.fail("it packs text"))
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_host_bytes", lambda: 1_000_000)
        with pytest.raises(DeviceMemoryError, match=r"^\w+ needs .* of memory .*, but cpu has 1 MB free: "):
            recover_tiny(*inputs, tmp_path / "out")
    small, teacher = map(Checkpoint.open, inputs[:2])
    sizes = RunSizes(teacher, Recipe(model=str(inputs[1])), smaller=small)
    count = sum(
        weight.numel() for name, weight in load_file(inputs[0] / "model.safetensors").items() if "layers" in name
    )
    assert sizes.kept_blocks == (count, count)


def test_the_same_call_again_reuses_it(whole, inputs, tmp_path, monkeypatch):
    out = shutil.copytree(whole[0], tmp_path / "out")
    monkeypatch.setattr(TrainingLoop, "run", lambda *_, **__: pytest.fail("it trains again"))
    monkeypatch.setattr(recovery, "check_recovery_memory", lambda *_: pytest.fail("it needs the memory of a training"))
    assert recover_tiny(*inputs, out).models == whole[1].models


@pytest.mark.parametrize(
    "settings",
    [
        ("recovery.distillation=0", "recovery.gradient_checkpointing=true"),
        ("compute.dtype=bfloat16", "recovery.distillation=0.8", "recovery.epochs=3"),
    ],
    ids=["text", "bfloat16"],
)
def test_other_settings_learn_too(inputs, tmp_path, settings):
    summary = recover_tiny(*inputs, tmp_path / "out", *settings)
    found = losses(summary)
    assert sum(found[-3:]) < sum(found[:3])
    shapes = {name: tensor.shape for name, tensor in load_file(inputs[0] / "model.safetensors").items()}
    assert {name: tensor.shape for name, tensor in weights(tmp_path / "out").items()} == shapes


@pytest.mark.parametrize("model_type", ["llama", "mixtral", "gemma4_text"])
def test_a_run_recovers_as_one_of_its_stages(tiny_folder, make_run, tmp_path, model_type):
    settings = (*STEPS, "recovery.learning_rate=0.003")
    summary = run_stages(make_run(tiny_folder(model_type), tmp_path / "out", *settings), "report").report
    models = summary.models
    assert {"dense", "uniform", "stitched", "recovered"} == models.keys()
    assert summary.of(RecoveryFigures).steps == 4
    assert "recovery" in (tmp_path / "out" / "report.html").read_text()


def test_two_processes_do_what_one_does(inputs, whole, tmp_path):
    """With the same global batches."""
    together(PROGRAM, *inputs, tmp_path / "out", *MICRO)
    summary = read_summary(tmp_path / "out" / "summary.json")
    assert (summary.of(RecoveryFigures).processes, summary.of(RecoveryFigures).sharded) == (2, False)
    assert_same_recovery(tmp_path / "out", whole[0], summary, whole[1])


def test_two_processes_that_share_the_weights_do_what_one_does(inputs, whole, tmp_path):
    """FSDP2: killed after a checkpoint, both processes resume and give the uninterrupted result."""
    command = (*inputs, tmp_path / "out", "--set", "recovery.sharding=fsdp", *MICRO)
    together(PROGRAM, *command, "--kill-at", 6, status=-signal.SIGKILL)
    work = tmp_path / "out" / WORK / "training"
    assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-4"]
    together(PROGRAM, *command)
    summary = read_summary(tmp_path / "out" / "summary.json")
    assert (summary.of(RecoveryFigures).processes, summary.of(RecoveryFigures).sharded) == (2, True)
    assert_same_recovery(tmp_path / "out", whole[0], summary, whole[1])
    assert not list((tmp_path / "out").rglob("*.bin")), "nothing is a pickle"


FAILING = """
import os
from darwinlm.cli.main import main
from darwinlm.steps.recover.train import TrainingLoop

update = TrainingLoop.update

def fail(loop, step):
    if step == 2 and os.environ["RANK"] == "1":
        raise MemoryError
    update(loop, step)

TrainingLoop.update = fail
main()
"""


def test_a_process_that_fails_in_training_ends_the_other(inputs, tmp_path):
    """Which waits for it in the middle of a step."""
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    small, teacher, text = inputs
    line = ("recover", small, "--teacher", teacher, "--text", text, "--out", tmp_path / "out", *sets(RECOVERY), *MICRO)
    ended = [each.wait() for each in start_together(tmp_path / "failing.py", *line)]
    assert 0 not in [each.returncode for each in ended]
    assert "Traceback" not in ended[0].stderr + ended[1].stderr
    (said,) = (line for each in ended for line in each.stderr.splitlines() if line.startswith("error:"))
    assert "the machine ran out of memory" in said


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_a_process_that_is_killed_in_training_ends_the_other(inputs, tmp_path, sharding):
    """With sharded weights, the other one waits for it in a collective of PyTorch's own."""
    killed = FAILING.replace("raise MemoryError", "os.kill(os.getpid(), 9)")
    (tmp_path / "killed.py").write_text(killed, encoding="utf-8")
    small, teacher, text = inputs
    settings = sets((*RECOVERY, f"recovery.sharding={sharding}"))
    line = ("recover", small, "--teacher", teacher, "--text", text, "--out", tmp_path / "out", *settings, *MICRO)
    ended = [each.wait() for each in start_together(tmp_path / "killed.py", *line)]
    assert [each.returncode for each in ended] == [2, -9]
    (said,) = (line for line in ended[0].stderr.splitlines() if not line.startswith("[W"))
    assert said.startswith("error: the connection to another process is lost")


def test_nodes_that_replicate_the_weights_do_what_one_process_does(inputs, whole, tmp_path):
    """HSDP: two processes of each of two nodes share one copy."""
    command = (*inputs, tmp_path / "out", "--set", "recovery.sharding=hsdp", "--set", "compute.batch_tokens=32")
    together(PROGRAM, *command, processes=4, nodes=2)
    summary = read_summary(tmp_path / "out" / "summary.json")
    assert (summary.of(RecoveryFigures).processes, summary.of(RecoveryFigures).sharded) == (4, True)
    assert_same_recovery(tmp_path / "out", whole[0], summary, whole[1])


def test_a_single_process_takes_the_recipe_of_many(inputs, whole, tmp_path):
    summary = recover_tiny(*inputs, tmp_path / "out", "recovery.sharding=fsdp")
    assert (summary.of(RecoveryFigures).processes, summary.of(RecoveryFigures).sharded) == (1, False)
    assert losses(summary) == losses(whole[1])


def test_a_training_that_is_no_better_on_held_out_text_is_not_kept(inputs, tmp_path):
    summary = recover_tiny(*inputs, tmp_path / "out", "recovery.learning_rate=1")
    assert summary.of(RecoveryFigures).kept == "before"
    assert summary.models["recovered"].kl == summary.models["before"].kl
    assert_same(weights(tmp_path / "out"), load_file(inputs[0] / "model.safetensors"))


@pytest.fixture
def refused(inputs, tmp_path, monkeypatch):
    """Recover, expecting an error before any training; other models and text can be given."""
    monkeypatch.setattr(TrainingLoop, "run", lambda *_, **__: pytest.fail("it trained"))

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


def test_another_models_training_is_kept(whole, inputs, make_run, tmp_path):
    out, run = shutil.copytree(whole[0], tmp_path / "out"), tmp_path / "run"
    run_stages(make_run(inputs[1], run, keep="80%"), "report")
    with pytest.raises(ArtifactError, match=r"holds a finished run with another budget: choose .* or delete that one"):
        recover(run, out, tokens=1000, text=str(inputs[2]))


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="nowhere holds no model"):
        recover(tmp_path / "nowhere", tmp_path / "out", tokens=1000)


@pytest.mark.parametrize("sizes", [[1, 1], [3, 3, 3, 1]])
def test_nodes_that_replicate_weights_must_be_equal(sizes, monkeypatch):
    """And have two processes or more, which share them."""
    monkeypatch.setattr(parallel, "size", lambda: len(sizes))
    monkeypatch.setattr(parallel, "local_size", lambda: sizes[0])
    monkeypatch.setattr(parallel, "gather", lambda _: sizes)
    with pytest.raises(ParallelError, match="the same number of processes, two or more, on each"):
        sharding_mesh("hsdp", torch.device("cpu"))
