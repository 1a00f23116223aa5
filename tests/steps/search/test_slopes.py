"""Gradients: of outputs against automatic differentiation, and losses of all levels against finite differences."""

import math
from functools import partial

import pytest
import torch
from tests.tiny.checkpoint import stream_over, tiny_checkpoint
from tests.tiny.stages import run_stages
from tests.tiny.whole import placed_in
from torch import nn
from torch.overrides import TorchFunctionMode

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.objective.next_token import LANGUAGE
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.outputs import output_projection
from darwinlm.runtime.errors import NumericsError
from darwinlm.steps.gradients.output_gradients import output_gradients
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.slopes import Gradients

STEPS = (1e-5, 1e-6, 1e-7)
"""Steps, the first of which is taken between whose ends no token changes its experts; larger ones bend."""


class InDouble(TorchFunctionMode):
    """Computes in float64 what models compute in float32 whatever their type: norms, probabilities, routing.

    Rounding in float32 changes a loss by 1e-8, which a step multiplies: the quotient of a mixture was off by 1e-4.
    """

    def __init__(self):
        super().__init__()
        self.experts = []

    def __torch_function__(self, function, types, arguments=(), named=None):
        if function is torch.Tensor.float:
            return arguments[0].double()
        doubled = {name: self.doubled(value) for name, value in (named or {}).items()}
        found = function(*map(self.doubled, arguments), **doubled)
        if function in (torch.topk, torch.Tensor.topk):
            self.experts += found.indices.sort().values.flatten().tolist()
        return found

    @staticmethod
    def doubled(value):
        return torch.float64 if value is torch.float32 else value


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


def bank_of(make_run, model, folder, dtype=torch.float64):
    placed, texts = placed_in(make_run(model, folder), dtype)
    if dtype == torch.float64:  # in which experts' products exist one by one
        for module in placed.decoder.model.modules():
            if hasattr(module, "config"):
                module.config._experts_implementation = "eager"
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
    """KL to the dense model in nats per token, float64, from whole logits; and the experts of all tokens."""
    with torch.no_grad(), InDouble() as computed:
        found = placed.decoder.model(input_ids=tokens, use_cache=False).logits.double().log_softmax(-1)
    placed.apply(placed.space.dense)
    with torch.no_grad(), InDouble():
        dense = placed.decoder.model(input_ids=tokens, use_cache=False).logits.double().log_softmax(-1)
    placed.apply(allocation)
    return float((dense.exp() * (dense - found)).sum() / tokens.numel()), computed.experts


def by_difference(placed, tokens, allocation, index, level):
    module, family = placed.space.modules[index], placed.decoder.family
    post_norm = family.module(module.kind).post_norm
    norm = getattr(placed.decoder.blocks[module.block], post_norm) if post_norm else None

    def after(step):
        placed.apply(allocation)
        modules = [placed.module(place, at) for place, at in enumerate(allocation)]
        modules[index] = Mixed(modules[index], placed.module(index, level), step, norm)
        placed.place(modules)
        return mean_kl(placed, tokens, allocation)

    for step in STEPS:
        (forth, experts), (back, others) = after(step), after(-step)
        if experts == others:
            return (forth - back) / (2 * step)
    raise AssertionError(f"tokens change their experts within {step}")


@pytest.mark.parametrize("model_type", ["llama", "ernie4_5", "gemma2", "granite", "phi3", "qwen3_moe"])
def test_slopes_are_derivatives_of_the_loss(model_type, tiny_folder, make_run, tmp_path):
    placed, tokens = bank_of(make_run, tiny_folder(model_type), tmp_path / "run")
    single, _ = bank_of(make_run, tiny_folder(model_type), tmp_path / "run", torch.float32)
    allocation, compared = middle(placed.space), 0
    slopes = gradients_of(single, tokens).around(allocation, WHOLE)
    for index, row in enumerate(slopes):
        module = placed.space.modules[index]
        if placed.database.shapes[module.block, module.kind].sizes.experts:
            assert set(row) == {0.0}, module
            continue
        for level in {0, len(row) // 2, len(row) - 1}:
            expected = by_difference(placed, tokens, allocation, index, level)
            assert row[level] - row[allocation[index]] == pytest.approx(expected, rel=1e-3, abs=1e-6), (module, level)
            compared += abs(expected) > 1e-4
    assert compared > 2


def test_slopes_do_not_depend_on_how_the_text_is_split(llama):
    _, gradients, allocation = llama
    whole, parts = (gradients(size).around(allocation, WHOLE) for size in (10**6, 1))
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)


def test_a_gradient_that_is_not_finite_is_refused(llama, monkeypatch):
    _, gradients, allocation = llama
    found = gradients()
    monkeypatch.setattr(found.fitness.reference, "gradient", lambda piece, hidden: hidden * math.nan)
    with pytest.raises(NumericsError, match=r"isn't finite: try compute\.dtype=float32, or search\.method=paper"):
        found.around(allocation, WHOLE)


LENGTH = 24
TOKENS = torch.randint(3, 250, (5, LENGTH), generator=torch.Generator().manual_seed(0))


def second_moments(checkpoint: Checkpoint) -> dict[tuple[int, str], torch.Tensor]:
    """E[g gᵀ] of the gradient of the summed loss at every module's output, from the model as transformers loads it.

    In front of a norm, the gradient is that of the norm's output before the gain.
    """
    model = checkpoint.load(torch.float32)
    outputs: dict[tuple[int, str], torch.Tensor] = {}
    gains: dict[tuple[int, str], torch.Tensor] = {}
    for block, layer in enumerate(model.get_submodule(checkpoint.family.layers)):
        for kind in checkpoint.family.kinds:
            projection = output_projection(layer, checkpoint.family, kind)
            projection.weight.requires_grad_(True)
            norm = checkpoint.family.module(kind).post_norm
            last = projection if norm is None else getattr(layer, norm)
            gains[block, kind] = torch.ones(()) if norm is None else last(torch.ones(projection.out_features)).detach()
            last.register_forward_hook(lambda _, __, out, key=(block, kind): outputs.__setitem__(key, out))
    logits = model(input_ids=TOKENS, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum")
    found = torch.autograd.grad(loss, list(outputs.values()))
    moments = {}
    for key, gradient in zip(outputs, found, strict=True):
        g = gradient.flatten(0, 1) * gains[key]
        moments[key] = g.T @ g / TOKENS.numel()
    return moments


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "olmo2", "qwen2"])
@pytest.mark.parametrize("place", ["file", "device"])
def test_gradients_are_those_of_the_whole_model(model_type, place, tiny_folder, tmp_path):
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    memory = HiddenMemory(tmp_path, place)
    stream = stream_over(checkpoint, TOKENS, 2 * LENGTH, memory=memory)
    assert stream.hidden.storage == place
    expected = second_moments(checkpoint)
    seen = []
    for block, moments in output_gradients(stream, LANGUAGE, memory):
        for kind, S in moments.items():
            torch.testing.assert_close(S, expected[block, kind], rtol=1e-3, atol=1e-5 * float(S.abs().max()))
            seen.append((block, kind))
    assert set(seen) == set(expected)
    assert [block for block, _ in seen] == sorted((block for block, _ in seen), reverse=True)
    assert list(tmp_path.iterdir()) == [], "nothing stays on the disk"


def test_the_loss_decides_what_goes_first_and_not_what_remains(tmp_path, make_run):
    """An output that the loss can't feel costs nothing: channels that only feed it go first."""
    folder = tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1)
    plain, weighted = (
        run_stages(make_run(folder, tmp_path / gradients, f"database.metric={gradients}"), "database").database
        for gradients in ("output", "loss")
    )
    assert not (tmp_path / "output" / "stages" / "gradients").exists()
    assert weighted.stage.key["settings"]["DatabaseSettings"]["metric"] == "loss"
    level = plain.reader.modules[1].levels[6]
    assert not torch.equal(*(found.reader.columns(0, "mlp", level) for found in (plain, weighted)))
    assert plain.reader.error(0, "mlp", level) < weighted.reader.error(0, "mlp", level) < 1
