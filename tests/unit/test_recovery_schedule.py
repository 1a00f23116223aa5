"""The schedule of the learning rate, and the trained weights."""

from __future__ import annotations

import pytest
from tests.tiny.models import tiny_model

from darwinlm.recipe import RecoverySettings
from darwinlm.recovery.model import prepared
from darwinlm.recovery.schedule import rate_share, warm_up_steps


def shares(steps):
    return [rate_share(steps, step) for step in range(steps)]


@pytest.mark.parametrize(("steps", "expected"), [(1000, 20), (100, 10), (24, 6), (3, 0)])
def test_a_short_training_warms_up_for_ten_steps_or_a_quarter(steps, expected):
    assert warm_up_steps(steps) == expected
    found = shares(steps)
    assert found[:expected] == pytest.approx([(step + 1) / (expected + 1) for step in range(expected)])
    assert found[expected] == 1.0
    assert found[expected:] == sorted(found[expected:], reverse=True)


def test_the_cosine_falls_to_a_tenth():
    found = shares(1000)
    assert found[510] == pytest.approx(0.1 + 0.9 * 0.5, abs=0.001)
    assert found[-1] == pytest.approx(0.1, abs=0.001)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_stay_where_the_recipe_says_so(tied):
    model = tiny_model("llama", tie_word_embeddings=tied)
    frozen = {
        name
        for name, weight in prepared(model, RecoverySettings(embeddings=False)).named_parameters()
        if not weight.requires_grad
    }
    assert frozen == ({"model.embed_tokens.weight"} if tied else {"model.embed_tokens.weight", "lm_head.weight"})
    assert all(weight.requires_grad for weight in prepared(model, RecoverySettings()).parameters())
