"""What the refit does on request: biases fitted along, and the projections into a module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.models import tiny_model
from tests.unit.test_refit import refitted

from darwinlm.errors import RecipeError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import families
from darwinlm.families.shapes import added_biases, module_shapes
from darwinlm.recipe import RefitSettings as Settings
from darwinlm.surgery.bias import biased_kinds
from darwinlm.surgery.refit import Options
from darwinlm.surgery.ridge import ridge_solution

BOTH = ("attention", "mlp")


def sample(n=300, d=9, r=4, seed=0):
    """Inputs [n, d] and outputs [n, r], neither around zero, and weights [r, d] to be pulled to."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) @ (np.eye(d) + 0.4 * rng.standard_normal((d, d))) + rng.standard_normal(d)
    Y = X @ rng.standard_normal((d, r)) + 3 + 0.3 * rng.standard_normal((n, r))
    return X, Y, rng.standard_normal((r, d))


@pytest.mark.parametrize("ridge", [1e-4, 0.1, 10.0])
def test_with_a_bias_it_is_the_centred_regression(ridge):
    X, Y, W0 = sample()
    n, d = X.shape
    ones = np.column_stack([X, np.ones(n)])
    H, C = torch.from_numpy(ones.T @ ones / n), torch.from_numpy(Y.T @ ones / n)
    start = torch.from_numpy(np.column_stack([W0, np.full(len(W0), 7.0)]))
    found = ridge_solution(H, C, start, ridge, bias=True).double().numpy()
    strength = np.sqrt(ridge * np.mean(np.sum(X**2, 0) / n))
    A = np.vstack([(X - X.mean(0)) / np.sqrt(n), strength * np.eye(d)])
    B = np.vstack([(Y - Y.mean(0)) / np.sqrt(n), strength * W0.T])
    W = np.linalg.lstsq(A, B, rcond=None)[0].T
    np.testing.assert_allclose(found[:, :-1], W, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[:, -1], Y.mean(0) - W @ X.mean(0), rtol=1e-4, atol=1e-4)


CARRY = {"llama": BOTH, "smollm3": BOTH, "granite": BOTH, "gemma": BOTH[:1], "gemma2": BOTH[:1]}
CARRY |= {"gemma3_text": BOTH[:1], "qwen3": BOTH[:1], "vaultgemma": BOTH[:1], "hunyuan_v1_dense": BOTH[:1]}
CARRY |= {"olmo2": BOTH[:1], "olmo3": BOTH[:1], "apertus": BOTH[:1], "arcee": BOTH, "nemotron": BOTH}
CARRY |= {"helium": BOTH[1:], "seed_oss": BOTH[1:]}
OUTPUTS = ("o_proj.bias", "down_proj.bias")


def biased(model_type, folder, *, emptied):
    """A tiny model with biases, those of its output projections taken away or not."""
    model = tiny_model(model_type, **{f"{kind}_bias": True for kind in CARRY[model_type]})
    with torch.no_grad():
        for name, bias in model.named_parameters():
            if name.endswith(OUTPUTS):
                bias.mul_(0.0 if emptied else 3.0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model_type", sorted(CARRY))
def test_it_finds_biases_that_were_taken_away(tmp_path, model_type):
    dense = biased(model_type, tmp_path / "dense", emptied=False)
    small = biased(model_type, tmp_path / "small", emptied=True)
    plain = refitted(dense, small, tmp_path / "plain", Options((0.3,)))
    found = refitted(dense, small, tmp_path / "stage", Options((0.3,), bias=CARRY[model_type]))
    wanted = Checkpoint.open(dense).load(torch.float32).state_dict()
    biases = {name: weight for name, weight in found.weights.items() if name.endswith("bias")}
    assert len(biases) == 4 * len(CARRY[model_type])
    assert not any(name.endswith("bias") for name in plain.weights)
    for name, bias in biases.items():
        torch.testing.assert_close(bias, wanted[name], rtol=0.02, atol=0.02)
    assert all(choice.after <= choice.before for choice in found.outcome.modules)
    assert found.after < 0.02 * found.before
    assert found.after < 0.1 * plain.after


@pytest.mark.parametrize("model_type", sorted(families()))
def test_families_that_cannot_carry_a_bias_say_so(tiny_folder, model_type):
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    able = CARRY.get(model_type, ())
    assert biased_kinds(Settings(bias=list(able)), checkpoint) == able
    assert biased_kinds(Settings(bias=True, enabled=False), checkpoint) == ()
    if able == BOTH:
        assert biased_kinds(Settings(bias=True), checkpoint) == BOTH
        return
    instead = rf"refit\.bias=\[{able[0]}\]" if able else r"refit\.bias=false"
    unable = "attention" if able == BOTH[1:] else "mlp"
    with pytest.raises(
        RecipeError, match=rf"refit\.bias: the configuration of {model_type} can't give .*{unable}.*{instead}"
    ):
        biased_kinds(Settings(bias=True), checkpoint)


def test_added_biases_are_those_of_a_model_that_has_them(tiny_llama, tmp_path):
    plain = module_shapes(Checkpoint.open(tiny_llama))
    full = Checkpoint.open(tiny_checkpoint(tmp_path, "llama", attention_bias=True, mlp_bias=True))
    for shape, with_biases in zip(plain, module_shapes(full), strict=True):
        more = sum(size[0] for name, size in with_biases.tensors.items() if name.endswith("bias"))
        assert more > 0
        assert added_biases(full.family, shape, shape.groups, shape.width) == more
        assert added_biases(full.family, with_biases, shape.groups, shape.width) == 0
        assert added_biases(full.family, shape, 0, 0) == 0
