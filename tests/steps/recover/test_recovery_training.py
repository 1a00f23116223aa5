"""The training loop compared with a plain one, damaged checkpoints, and the memory of the optimizer."""

import itertools
import shutil
from math import nan
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.tiny.models import randomised, tiny_config, tiny_model
from tests.tiny.recovering import Stopped
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from darwinlm.model.objective.scores import Scores
from darwinlm.model.walk import items
from darwinlm.runtime.errors import ArtifactError, NumericsError, RecipeError
from darwinlm.steps.recover import recovery_settings
from darwinlm.steps.recover import train as training
from darwinlm.steps.recover.recovery_losses import ForwardKL
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.recover.schedule import plan_steps, rate_share
from darwinlm.steps.recover.train import Training, TrainingLoop, improved

LENGTH = 16
SETTINGS = RecoverySettings(
    tokens=6 * 8 * LENGTH, batch_tokens=8 * LENGTH, distillation=0.6, learning_rate=0.01, epochs=2
)
STEPS = plan_steps(SETTINGS, LENGTH, 4 * LENGTH)
CHECKPOINT = "checkpoint-4"


TOKENS = [torch.randint(3, 250, (LENGTH,), generator=torch.Generator().manual_seed(row)) for row in range(105)]
TEXT, HELD_OUT = [{"input_ids": row} for row in TOKENS[: STEPS.sequences]], torch.stack(TOKENS[100:])


@pytest.fixture(autouse=True, scope="module")
def as_a_long_training():
    """With the embedding, and a checkpoint after every second step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery_settings, "LONG_TRAINING", 0)
        patch.setattr(recovery_settings, "SAVED_EVERY", 2 * 8 * LENGTH)
        yield


def trained(
    folder: Path, settings: RecoverySettings = SETTINGS, *, dropout: bool = False, student: int = 1, **more
) -> SimpleNamespace:
    model, record = Training(
        lambda on_block=None: tiny_model("llama", student, attention_dropout=0.1 * dropout),
        tiny_model("llama", 0),
        TEXT,
        HELD_OUT,
        STEPS,
        settings,
        folder,
        {"key": "test"},
        device=torch.device("cpu"),
        dtype=torch.float32,
        **more,
    ).train()
    return SimpleNamespace(model=model, record=record)


def test_a_model_that_has_nothing_to_learn_from_the_dense_one_is_refused(tmp_path):
    """As after a cut of the vocabulary alone: the rate would be 0, and the training would change nothing."""
    with pytest.raises(RecipeError, match=r"would learn nothing from it: .* recovery\.distillation=0"):
        trained(tmp_path, SETTINGS.model_copy(update={"learning_rate": None}), student=0)


def test_the_loop_is_the_one_by_hand(tmp_path, monkeypatch):
    """Six steps of eight sequences, each in two micro-batches; two epochs of three steps."""
    teacher, model = (tiny_model("llama", seed).requires_grad_(seed > 0) for seed in (0, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    expected = []
    for step in range(6):
        generator = torch.Generator().manual_seed(step // 3)
        rows = torch.randperm(24, generator=generator)[step % 3 * 8 : step % 3 * 8 + 8]
        tokens = torch.stack([TOKENS[row] for row in rows])
        logits = model(input_ids=tokens).logits
        p, q = (torch.log_softmax(each, -1).flatten(0, 1) for each in (teacher(input_ids=tokens).logits, logits))
        loss = 0.6 * functional.kl_div(q, p, reduction="batchmean", log_target=True)
        loss = loss + 0.4 * functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * rate_share(6, step)
        optimizer.step()
        optimizer.zero_grad()
        expected.append((loss.item(), norm.item()))
    monkeypatch.setattr("darwinlm.steps.recover.train.LOG_EVERY", 2)
    found = trained(tmp_path)
    assert found.record["kept"] == "trained"
    logged = [entry for entry in found.record["log"] if "loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 4, 6]
    losses = [loss for loss, _ in expected]
    means = [losses[0], losses[1], sum(losses[2:4]) / 2, sum(losses[4:]) / 2]
    assert [entry["loss"] for entry in logged] == pytest.approx(means, rel=1e-5)
    assert [entry["learning_rate"] for entry in logged] == [0.01 * rate_share(6, step) for step in (0, 1, 3, 5)]
    assert [entry["grad_norm"] for entry in logged] == pytest.approx([expected[i][1] for i in (0, 1, 3, 5)], rel=1e-4)
    for (name, ours), theirs in zip(found.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("great", [1e-4, 100.0])
def test_the_rate_follows_the_weights_and_the_loss(tmp_path, monkeypatch, great):
    monkeypatch.setattr(training, "RATE_KL", great)
    before, first, *_ = trained(tmp_path, SETTINGS.model_copy(update={"learning_rate": None})).record["log"]
    assert 1e-4 < before["eval_kl"] < 100
    matrices = [weight.detach().flatten() for weight in tiny_model("llama", 1).parameters() if weight.ndim > 1]
    highest = training.RATE * float(torch.cat(matrices).square().mean().sqrt()) * min(before["eval_kl"] / great, 1.0)
    assert first["learning_rate"] == pytest.approx(highest * rate_share(6, 0))


def scorer(seed: int):
    """A tiny reranker, whose padding is in no text."""
    config = tiny_config("llama", num_labels=1, pad_token_id=0)
    return randomised(lambda: AutoModelForSequenceClassification.from_config(config), seed).float()


@pytest.fixture(scope="module")
def read_texts():
    """Sequences that each hold one text."""
    return torch.stack([torch.tensor(items.sequence_of([row.tolist()])) for row in TOKENS])


def trained_to_read(folder: Path, texts: torch.Tensor, rate: float | None = None, *, student: int = 1, **more):
    return Training(
        lambda on_block=None: scorer(student),
        scorer(0),
        [{"input_ids": row} for row in texts[: STEPS.sequences]],
        texts[100:],
        STEPS,
        SETTINGS.model_copy(update={"learning_rate": rate, "distillation": 1.0}),
        folder,
        {"key": "test"},
        Scores(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        **more,
    ).train()


def first_rate(record) -> float:
    """The rate of the first step, before the warm-up's share."""
    return record["log"][1]["learning_rate"] / rate_share(6, 0)


def test_a_model_that_reads_gets_the_rate_whose_first_update_could_lower_the_loss_to_zero(tmp_path, read_texts):
    """As plain autograd finds it, in two micro-batches, and kept by a training that resumes."""
    dense, model = scorer(0), scorer(1)
    rows = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:8]
    tokens = torch.stack([TOKENS[row] for row in rows])
    loss = 0.5 * (model(input_ids=tokens).logits - dense(input_ids=tokens).logits.detach()).square().mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    expected = loss.item() / sum(float(gradient.abs().sum()) for gradient in gradients)

    def stop(done, total):
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        trained_to_read(tmp_path, read_texts, progress=stop)
    _, record = trained_to_read(tmp_path, read_texts)
    assert first_rate(record) == pytest.approx(expected, rel=1e-4)
    assert record["log"][-2]["learning_rate"] == pytest.approx(expected * rate_share(6, 5), rel=1e-4)


def test_a_model_that_reads_gets_no_larger_rate_than_its_weights_allow(tmp_path, read_texts, monkeypatch):
    monkeypatch.setattr(training, "RATE", 1e-9)
    matrices = [weight.detach().flatten() for weight in scorer(1).parameters() if weight.ndim > 1]
    magnitude = float(torch.cat(matrices).square().mean().sqrt())
    assert first_rate(trained_to_read(tmp_path, read_texts)[1]) == pytest.approx(1e-9 * magnitude)


def test_the_recipe_s_rate_is_that_of_a_model_that_reads(tmp_path, read_texts):
    assert first_rate(trained_to_read(tmp_path, read_texts, 0.5)[1]) == pytest.approx(0.5)


def test_a_model_that_reads_as_the_dense_one_does_stays_as_it_is(tmp_path, read_texts):
    """Without a gradient there is no rate to find."""
    model, record = trained_to_read(tmp_path, read_texts, student=0)
    assert record["log"][1]["loss"] == 0.0
    for (name, ours), before in zip(model.named_parameters(), scorer(0).parameters(), strict=True):
        assert torch.equal(ours, before), name


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A training with dropout, stopped in its sixth step."""
    folder = tmp_path_factory.mktemp("stopped")

    def stop(done, total):
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        trained(folder, dropout=True, progress=stop)
    return folder


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(stopped, tmp_path):
    """The log is equal too, although the checkpoint lies between two of its lines."""
    whole = trained(tmp_path / "whole", dropout=True)
    resumed = trained(shutil.copytree(stopped, tmp_path / "resumed"), dropout=True)
    assert resumed.record["log"] == whole.record["log"]
    for (name, ours), theirs in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_loss_that_is_not_finite_stops(tmp_path, monkeypatch):
    whole = TrainingLoop.loss_of
    monkeypatch.setattr(
        TrainingLoop, "loss_of", lambda run, tokens: whole(run, tokens) * (nan if run.state.step else 1)
    )
    with pytest.raises(NumericsError, match="before step 2: the loss is nan"):
        trained(tmp_path)


@pytest.mark.parametrize(("share", "better"), [(1.0, True), (0.5, True), (0.0, False)])
def test_the_objective_decides_what_is_better(share, better):
    log = [{"eval_perplexity": 10.0, "eval_kl": 1.0}, {"loss": 2.0}, {"eval_perplexity": 12.0, "eval_kl": 0.1}]
    assert improved(log, RecoverySettings(distillation=share)) is better


def test_a_registered_loss_is_trained_and_judged_by_its_own_value(tmp_path):
    class Doubled(ForwardKL):
        """Twice the KL."""

        def summed(self, logits, reference):
            return 2 * super().summed(logits, reference)

    settings = SETTINGS.model_copy(update={"loss": Doubled(), "distillation": 1.0})
    log = trained(tmp_path / "doubled", settings).record["log"]
    held_out = [entry for entry in log if "eval_perplexity" in entry]
    assert len(held_out) > 1
    for entry in held_out:
        assert entry["eval_loss"] == pytest.approx(2 * entry["eval_kl"], rel=1e-5)
    plain = trained(tmp_path / "plain", settings.model_copy(update={"loss": ForwardKL()})).record["log"]
    assert log[1]["loss"] == pytest.approx(2 * plain[1]["loss"], rel=1e-5)
    assert "eval_loss" not in plain[0]
    worse = [{"eval_perplexity": 1.0, "eval_kl": 1.0, "eval_loss": 1.0}, {**held_out[-1], "eval_loss": 2.0}]
    assert not improved(worse, settings), "whatever the KL says"


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-2]),
    "changed": lambda path: path.write_bytes(path.read_bytes()[:-9] + bytes([path.read_bytes()[-9] ^ 1]) + b"x" * 8),
    "empty": lambda path: path.write_bytes(b""),
}


PARTS = [f"shard-00001-model-{part:05}-of-00003.safetensors" for part in (1, 2, 3)]
BOTH, OTHERS = (PARTS[0], "manifest.json"), (*PARTS[1:], "state.json")


@pytest.mark.parametrize(
    ("name", "damage"),
    [*((name, damage) for name in BOTH for damage in DAMAGES), *((name, "changed") for name in OTHERS)],
)
def test_a_damaged_checkpoint_is_refused(stopped, tmp_path, name, damage):
    folder = shutil.copytree(stopped, tmp_path / "training")
    DAMAGES[damage](folder / CHECKPOINT / name)
    with pytest.raises(ArtifactError, match=rf"{CHECKPOINT}.*(is damaged|isn't complete)") as raised:
        trained(folder, dropout=True, progress=lambda *_: pytest.fail("it trained"))
    assert "\n" not in str(raised.value)


def test_without_the_damaged_checkpoint_it_goes_on_from_the_one_before(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "training")
    shutil.rmtree(folder / CHECKPOINT)
    said = []
    trained(folder, dropout=True, say=said.append)
    assert said[0] == "recovery: resuming from checkpoint-2"


def test_a_time_limit_ends_the_training_with_its_schedule(tmp_path, monkeypatch):
    """Every look at the clock takes a second."""
    ticks = itertools.count()
    monkeypatch.setattr(training, "working_time", lambda: float(next(ticks)))
    record = trained(tmp_path, ends=7.0).record
    assert 1 < record["steps"] < STEPS.count
    assert record["log"][-1]["step"] == record["steps"]
    assert "eval_kl" in record["log"][-1]
    ends = [entry for entry in record["log"] if "learning_rate" in entry]
    assert ends[-1]["step"] == record["steps"]
    assert ends[-1]["learning_rate"] == 0.01 * rate_share(record["steps"], record["steps"] - 1)
    said: list[str] = []
    again = trained(tmp_path, ends=7.0, say=said.append).record
    assert again["steps"] == record["steps"]
    assert again["log"] == record["log"]
    assert "recovery: the time limit leaves no time for another step" in said
