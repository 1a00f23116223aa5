"""Losses of rounding single matrices, against automatic differentiation of the whole model and against its real KL."""

from copy import deepcopy

import pytest
import torch
from tests.tiny.checkpoint import stream_over, tiny_checkpoint
from torch import nn

from darwinlm.calibration import rounding
from darwinlm.calibration.rounding import rounding_losses
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.expert_tensors import as_stored, by_rows
from darwinlm.streaming.hidden import HiddenMemory

LENGTH = 24
TOKENS = torch.randint(3, 250, (5, LENGTH), generator=torch.Generator().manual_seed(0))
MORE_TOKENS = torch.randint(3, 250, (48, LENGTH), generator=torch.Generator().manual_seed(1))


def change(weight):
    """A small one that depends on the value, so that a row of an embedding changes alike wherever it is."""
    return 0.01 * torch.sin(40 * weight)


def two_types(weights):
    """Weights after "rounding" to two types, one of which errs twice as much."""
    for name, each in weights.items():
        yield name, "fine", each + change(each)
        yield name, "coarse", each + 2 * change(each)


def watched_mixture(module, name, seen):
    """A forward pass of a mixture in plain steps, each of whose outputs is added to `seen` with its error."""

    def projected(x, weight, part):
        seen.append((f"{name}.{part}", y := x @ weight.T, x.detach() @ change(weight).T))
        return y

    def forward(hidden, chosen, factors):
        result = torch.zeros_like(hidden)
        for expert, (joined, last) in enumerate(
            zip(module.gate_up_proj.detach(), module.down_proj.detach(), strict=True)
        ):
            token, place = torch.where(chosen == expert)
            gate, up = (projected(hidden[token], w, f"gate_up_proj.{i}") for i, w in enumerate(joined.chunk(2)))
            out = projected(module.act_fn(gate) * up, last, "down_proj")
            result = result.index_add(0, token, out * factors[token, place, None])
        return result

    return forward


def losses_of_the_whole_model(checkpoint):
    """½ E[(gᵀ e)²] of every linear layer, expert, the embedding and the head, for the tokens of the text."""
    model = checkpoint.load(torch.float32)
    family, model = checkpoint.family, model.requires_grad_(True)
    head, tied = model.get_output_embeddings(), checkpoint.config.tie_word_embeddings
    names = {id(head): family.embedding if tied else family.head}
    layers = [(name, each) for name, each in model.named_modules() if isinstance(each, nn.Linear)]
    layers.append((family.embedding, model.get_submodule(family.embedding)))
    seen = []
    for name, layer in layers:
        twin = deepcopy(layer).requires_grad_(False)
        twin.weight.copy_(change(twin.weight))
        twin.bias = None

        def watch(layer, given, output, name=name, twin=twin):
            seen.append((f"{names.get(id(layer), name)}.weight", output, twin(given[0].detach())))

        layer.register_forward_hook(watch)
    for name, module in model.named_modules():
        if hasattr(module, "gate_up_proj") and not isinstance(module.gate_up_proj, nn.Module):
            module.forward = watched_mixture(module, name, seen)
    logits = model(input_ids=TOKENS, use_cache=False).logits[:, :-1]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten(), reduction="sum")
    gradients = torch.autograd.grad(loss, [output for _, output, _ in seen])
    found = {}
    for (name, _, error), g in zip(seen, gradients, strict=True):
        part = float((g * error).sum(-1).square().sum()) / (2 * TOKENS.numel())
        found[name] = found.get(name, 0.0) + part
    return found


@pytest.mark.parametrize(
    "model_type",
    ["llama", "qwen3", "gemma2", "granite", "phi3", "qwen3_5_text", "mixtral", "deepseek_v3"],
)
@pytest.mark.parametrize("place", ["file", "device"])
def test_losses_are_those_of_their_definition(model_type, place, tiny_folder, tmp_path, monkeypatch):
    """Errors of a matrix times the gradient at its output; an embedding that is the head too has both losses."""
    monkeypatch.setattr(rounding, "SEED", None)
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    expected = losses_of_the_whole_model(checkpoint)
    memory, steps = HiddenMemory(tmp_path, place), []
    stream = stream_over(checkpoint, TOKENS, 2 * LENGTH, memory=memory)
    found = rounding_losses(stream, TOKENS, two_types, memory, lambda done, total: steps.append((done, total)))
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        assert found[name]["fine"] == pytest.approx(loss, rel=2e-3, abs=1e-9), name
        assert found[name]["coarse"] == pytest.approx(4 * loss, rel=2e-3, abs=1e-9), name
    assert sum(loss > 1e-7 for loss in expected.values()) > 16
    assert steps == [(done, checkpoint.n_blocks) for done in range(1, checkpoint.n_blocks + 1)]
    assert list(tmp_path.iterdir()) == [], "nothing stays on the disk"


@pytest.mark.parametrize("model_type", ["gpt_oss", "qwen3_moe"])
def test_losses_of_experts_are_about_the_kl_of_the_changed_model(model_type, tmp_path):
    """Also where rows of gate and up alternate, in tensors that are stored by columns; behind the last router."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "model", model_type))
    found = rounding_losses(stream_over(checkpoint, MORE_TOKENS, 8 * LENGTH), MORE_TOKENS, two_types)
    model, part = checkpoint.load(torch.float32), checkpoint.family.mlp
    with torch.no_grad():
        dense = model(input_ids=MORE_TOKENS, use_cache=False).logits.log_softmax(-1)
        prefix = f"{checkpoint.block_prefix(checkpoint.n_blocks - 1)}{part.prefix}{part.experts.name}"
        module = model.get_submodule(prefix)
        for leaf, index, parts in (("gate_up_proj", 0, 2), ("gate_up_proj", 1, 2), ("down_proj", 0, 1)):
            weight, inside = getattr(module, leaf), f"{part.experts.name}.{leaf}"
            exact = weight.clone()
            rows = by_rows(part, inside, exact.clone())
            some = rows.chunk(parts, 1)[index]
            some += change(some)
            weight.copy_(as_stored(part, inside, rows))
            changed = model(input_ids=MORE_TOKENS, use_cache=False).logits.log_softmax(-1)
            weight.copy_(exact)
            kl = float((dense.exp() * (dense - changed)).sum(-1).mean())
            name = f"{prefix}.{leaf}.{index}" if parts > 1 else f"{prefix}.{leaf}"
            assert 0.7 < found[name]["fine"] / kl < 1.5, name


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_losses_are_about_the_kl_of_the_changed_model(model_type, tmp_path):
    """For all but values, whose errors at different tokens are no longer independent once attention has summed them."""
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "model", model_type))
    stream = stream_over(checkpoint, MORE_TOKENS, 8 * LENGTH)
    found = rounding_losses(stream, MORE_TOKENS, two_types)
    model = checkpoint.load(torch.float32)
    names = {name for name in found if any(part in name for part in ("embed", "lm_head", ".0.", ".3."))}
    with torch.no_grad():
        dense = model(input_ids=MORE_TOKENS, use_cache=False).logits.log_softmax(-1)
        for name in sorted(names):
            weight = model.get_parameter(name)
            exact = weight.clone()
            weight.copy_(exact + change(exact))
            changed = model(input_ids=MORE_TOKENS, use_cache=False).logits.log_softmax(-1)
            weight.copy_(exact)
            kl = float((dense.exp() * (dense - changed)).sum(-1).mean())
            low = 0.3 if "v_proj" in name else 0.7
            assert low < found[name]["fine"] / kl < 1.5, name


def test_the_same_seed_gives_the_same_losses_and_matrices_that_were_not_rounded_have_none(tiny_folder):
    checkpoint = Checkpoint.open(tiny_folder("llama"))

    def one(weights):
        return (each for each in two_types(weights) if "down_proj" in each[0])

    first, again = (rounding_losses(stream_over(checkpoint, TOKENS, 2 * LENGTH), TOKENS, one) for _ in range(2))
    assert first == again
    assert [name for name in first if "down_proj" not in name] == []
    assert len(first) == checkpoint.n_blocks
