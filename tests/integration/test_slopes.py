"""First-order losses of all levels around an allocation, against finite differences of the loss itself."""

import math
from functools import partial

import pytest
import torch
from tests.tiny.whole import placed_in
from torch import nn

from darwinlm.runtime.errors import NumericsError
from darwinlm.search.fitness import Fitness
from darwinlm.search.gradients import Gradients

STEP, IN_MIXTURES = 3e-3, 3e-4
"""A step; larger ones change which experts tokens take."""


class Mixed(nn.Module):
    """A step from one module's output toward another's, behind the norm if one follows."""

    def __init__(self, standing: nn.Module, other: nn.Module, step: float, norm: nn.Module | None) -> None:
        super().__init__()
        self.standing, self.other, self.step = standing, other, step
        self.norm = [norm]

    def forward(self, *arguments, **named):
        here, there = self.standing(*arguments, **named), self.other(*arguments, **named)
        pair = isinstance(here, tuple)
        both = (here[0], there[0]) if pair else (here, there)
        if self.norm[0] is None:
            mixed = torch.lerp(*both, self.step)
        else:
            behind = torch.lerp(*map(self.norm[0].forward, both), self.step)
            hook = self.norm[0].register_forward_hook(lambda *_: (hook.remove(), behind)[1])
            mixed = both[0]
        return (mixed, None) if pair else mixed


def bank_of(make_run, model, folder, *settings):
    # Experts' products exist in single precision at most.
    dtype = torch.float32 if "moe" in model.name else torch.float64
    placed, texts = placed_in(make_run(model, folder, *settings), dtype)
    return placed, texts["fitness"].tokens[:4]


WHOLE = (0, 4)
"""The window of the whole text."""


def gradients_of(placed, tokens, batch_tokens=64):
    return Gradients(Fitness(placed, tokens, batch_tokens=batch_tokens), placed.database)


@pytest.fixture(scope="module")
def llama(tiny_llama, make_run, tmp_path_factory):
    """Placed modules of the tiny Llama, text, an allocation, and a way to gradients."""
    placed, tokens = bank_of(make_run, tiny_llama, tmp_path_factory.mktemp("llama") / "run")
    return placed, partial(gradients_of, placed, tokens), middle(placed.space)


def middle(space):
    """Modules that are dense, gone and in between."""
    return tuple((0, top // 2, top, max(top - 1, 0))[index % 4] for index, top in enumerate(space.dense))


def mean_kl(placed, tokens, allocation):
    """KL to the dense model in nats per token, float64, from whole logits."""
    with torch.no_grad():
        found = placed.decoder.model(input_ids=tokens, use_cache=False).logits.double().log_softmax(-1)
        placed.apply(placed.space.dense)
        dense = placed.decoder.model(input_ids=tokens, use_cache=False).logits.double().log_softmax(-1)
    placed.apply(allocation)
    return float((dense.exp() * (dense - found)).sum() / tokens.numel())


def by_difference(placed, tokens, allocation, index, level):
    losses = []
    size = IN_MIXTURES if any(shape.experts for shape in placed.database.shapes.values()) else STEP
    for step in (size, -size):
        placed.apply(allocation)
        modules = [placed.module(place, at) for place, at in enumerate(allocation)]
        module, family = placed.space.modules[index], placed.decoder.family
        post_norm = family.module(module.kind).post_norm
        norm = getattr(placed.decoder.blocks[module.block], post_norm) if post_norm else None
        modules[index] = Mixed(modules[index], placed.module(index, level), step, norm)
        placed.place(modules)
        losses.append(mean_kl(placed, tokens, allocation))
    return (losses[0] - losses[1]) / (2 * size)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "granite", "phi3", "qwen3_moe"])
def test_slopes_are_derivatives_of_the_loss(model_type, tiny_folder, make_run, tmp_path):
    placed, tokens = bank_of(make_run, tiny_folder(model_type), tmp_path / "run")
    allocation = middle(placed.space)
    slopes = gradients_of(placed, tokens).around(allocation, WHOLE)
    compared, noise = 0, 1e-5 if placed.decoder.dtype == torch.float64 else 3e-5
    for index, row in enumerate(slopes):
        module = placed.space.modules[index]
        if placed.database.shapes[module.block, module.kind].experts:
            assert set(row) == {0.0}, module
            continue
        for level in {0, len(row) // 2, len(row) - 1}:
            expected = by_difference(placed, tokens, allocation, index, level)
            assert row[level] - row[allocation[index]] == pytest.approx(expected, rel=0.02, abs=noise), (module, level)
            compared += abs(expected) > 1e-4
    assert compared > 2


def test_slopes_do_not_depend_on_how_the_text_is_split(llama):
    """Pieces have more tokens than a module has outputs, or fewer, and are solved for what is less."""
    placed, gradients, allocation = llama
    assert placed.decoder.model.config.hidden_size == 48, "pieces have 128 and 32 tokens"
    whole, parts = (gradients(size).around(allocation, WHOLE) for size in (10**6, 1))
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)


def test_a_gradient_that_is_not_finite_is_refused(llama, monkeypatch):
    _, gradients, allocation = llama
    found = gradients()
    monkeypatch.setattr(found, "_behind_last_block", lambda hidden, dense: hidden * math.nan)
    with pytest.raises(NumericsError, match=r"isn't finite: try compute\.dtype=float32, or search\.method=paper"):
        found.around(allocation, WHOLE)
