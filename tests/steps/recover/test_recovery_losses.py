"""Losses of recovery against plain formulas and the model's own logits; its steps, its rates and what it trains."""

import pytest
import torch
from tests.tiny.models import tiny_model
from torch.nn import functional

from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.recover.schedule import plan_steps, rate_share, warm_up_steps
from darwinlm.steps.recover.trained_model import batch_loss, logit_tokens, prepared, run_dense

GENERATOR = torch.Generator().manual_seed(1)
TOKENS = torch.randint(3, 250, (3, 20), generator=GENERATOR)


OBJECTIVES = {"kl": (1.0, 7, False), "both": (0.7, 16, False), "text": (0.0, 1000, False), "again": (0.7, 7, True)}


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite", "qwen2", "qwen3_moe"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_in_chunks_is_the_batch(model_type, name, monkeypatch):
    distillation, chunk, twice = OBJECTIVES[name]
    monkeypatch.setattr("darwinlm.steps.recover.trained_model.LOGIT_TOKENS", chunk)
    teacher, ours, again = (tiny_model(model_type, seed).requires_grad_(seed > 0) for seed in (0, 1, 1))
    dense = run_dense(teacher, TOKENS) if distillation else None
    terms = RecoverySettings(distillation=distillation).terms
    loss = batch_loss(ours, teacher, TOKENS, dense, terms, again=twice)
    loss.backward()
    output = again(input_ids=TOKENS)
    with torch.no_grad():
        reference = teacher(input_ids=TOKENS)
    p, q = (torch.log_softmax(found.logits, -1).flatten(0, 1) for found in (reference, output))
    expected = distillation * functional.kl_div(q, p, reduction="batchmean", log_target=True)
    logits = output.logits[:, :-1].flatten(0, 1)
    own = functional.cross_entropy(logits, TOKENS[:, 1:].flatten())
    expected = expected + (1 - distillation) * own
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for (key, found), wanted in zip(ours.named_parameters(), again.parameters(), strict=True):
        assert found.grad is not None, key
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-5)


def test_logits_of_a_large_vocabulary_take_no_more_memory():
    assert [logit_tokens(vocabulary) for vocabulary in (49_152, 151_936, 1 << 27)] == [1024, 441, 1]


@pytest.mark.parametrize(
    ("tokens", "batch", "epochs", "processes", "expected"),
    [
        (7 * 1024, 1024, 2, 1, (7, 4, 32)),
        (8000, 32768, 1, 1, (8, 8, 31)),
        (8000, 32768, 1, 4, (8, 8, 28)),
        (100, 32768, 1, 2, (1, 1, 2)),
        (24576, None, 1, 1, (8, 8, 96)),
        (49152, None, 1, 1, (12, 12, 128)),
        (98304, None, 1, 1, (24, 24, 128)),
        (1_000_000, None, 1, 1, (244, 244, 128)),
        (300_000_000, None, 1, 8, (9155, 9155, 1024)),
    ],
)
def test_epochs_share_the_steps_and_fewer_tokens_than_a_step_are_cut(tokens, batch, epochs, processes, expected):
    steps = plan_steps(RecoverySettings(tokens=tokens, batch_tokens=batch, epochs=epochs), 32, 256, processes)
    assert (steps.count, steps.per_epoch, steps.step_rows) == expected
    assert steps.count * steps.tokens <= tokens
    assert steps.sequences == steps.per_epoch * steps.step_rows


def shares(steps):
    return [rate_share(steps, step) for step in range(steps)]


@pytest.mark.parametrize(("steps", "expected"), [(1000, 20), (100, 10), (24, 6), (3, 0)])
def test_a_short_training_warms_up_for_ten_steps_or_a_quarter(steps, expected):
    assert warm_up_steps(steps) == expected
    found = shares(steps)
    assert found[:expected] == pytest.approx([(step + 1) / (expected + 1) for step in range(expected)])
    assert found[expected] == 1.0
    assert found[expected:] == sorted(found[expected:], reverse=True)


def test_dropouts_are_off_and_a_pooler_is_not_trained():
    """The pooler gets no gradient, for which DDP would wait."""
    tokens = torch.arange(40).view(2, 20)
    model = tiny_model("bert")
    expected = model(input_ids=tokens).last_hidden_state
    assert not torch.equal(model.train()(input_ids=tokens).last_hidden_state, expected)
    trained = prepared(model, RecoverySettings(tokens=10_000_000)).train()
    torch.testing.assert_close(trained(input_ids=tokens).last_hidden_state, expected)
    frozen = {name for name, weight in trained.named_parameters() if not weight.requires_grad}
    assert frozen == {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_stay_in_a_short_training(tied):
    model = tiny_model("llama", tie_word_embeddings=tied)
    weights = prepared(model, RecoverySettings(tokens=1)).named_parameters()
    frozen = {name for name, weight in weights if not weight.requires_grad}
    assert frozen == ({"model.embed_tokens.weight"} if tied else {"model.embed_tokens.weight", "lm_head.weight"})
    short, long = RecoverySettings(tokens=1_000_000), RecoverySettings(tokens=10_000_000)
    assert {name for name, weight in prepared(model, short).named_parameters() if not weight.requires_grad} == frozen
    assert all(weight.requires_grad for weight in prepared(model, long).parameters())
