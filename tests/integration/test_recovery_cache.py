"""Recovery from stored log-probabilities."""

import pytest
import torch
from tests.tiny.recovering import losses, recover_tiny

from darwinlm.recovery import cache, train
from darwinlm.recovery.model import dense_top, run_dense
from darwinlm.runtime.errors import RecipeError


def in_training(*given):
    """The most likely tokens in training, nothing in evaluation."""
    return dense_top(*given, cache.TOP_K) if torch.is_grad_enabled() else None


def test_a_recovery_from_stored_tokens_is_that_from_the_dense_model(inputs, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(train, "run_dense", lambda *given: in_training(*given) or run_dense(*given))
        living = recover_tiny(*inputs, tmp_path / "living")
    more = (f"recovery.teacher_cache={tmp_path / 'cache'}",)
    monkeypatch.setattr(
        train, "run_dense", lambda *given: pytest.fail("it trains") if torch.is_grad_enabled() else run_dense(*given)
    )
    stored = recover_tiny(*inputs, tmp_path / "stored", *more)
    assert losses(stored) == pytest.approx(losses(living), rel=2e-3)
    assert stored.models["recovered"].kl == pytest.approx(living.models["recovered"].kl, rel=2e-3)
    made = sorted(path.name for path in (tmp_path / "cache").iterdir())
    monkeypatch.setattr(cache, "dense_top", lambda *_: pytest.fail("the dense model runs again"))
    other = recover_tiny(
        *inputs, tmp_path / "other", *more, "recovery.seed=3", "recovery.epochs=2", "recovery.tokens=12288"
    )
    assert losses(other) != losses(stored)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == made


def test_a_cache_serves_distillation_only(inputs, tmp_path):
    with pytest.raises(RecipeError, match="set distillation above 0"):
        recover_tiny(*inputs, tmp_path / "out", "recovery.teacher_cache=cache", "recovery.distillation=0")
