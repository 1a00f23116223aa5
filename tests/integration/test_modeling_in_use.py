"""Models whose layers differ, at home in everything transformers and its neighbours do with a model."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny.cutting import logits, near, tokens
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def test_cached_equals_uncached(pruned):
    ids = tokens()
    cache = DynamicCache(config=pruned.config)
    name = "cache" if hasattr(pruned(ids[:, :1]), "cache") else "past_key_values"
    parts = [logits(pruned, part, **{name: cache, "use_cache": True}) for part in ids.split([13, *[1] * 11], dim=1)]
    near(torch.cat(parts, dim=1), logits(pruned, ids))
    assert cache.get_seq_length() == ids.shape[1]


def test_layers_without_attention_cache_nothing_but_the_count(plan, pruned):
    cache = DynamicCache(config=pruned.config)
    name = "cache" if hasattr(pruned(tokens(1, 1)), "cache") else "past_key_values"
    logits(pruned, tokens(), **{name: cache})
    for i, (kept, layer) in enumerate(zip(plan, cache.layers, strict=True)):
        if kept.heads:
            assert layer.keys.shape[1] == kept.cached
        elif layer.is_sliding or not any(type(other) is type(layer) for other in cache.layers[:i]):
            assert layer.keys.shape[1] == 1
            assert not layer.keys.any()
        else:
            assert not layer.is_initialized


def test_generation(pruned):
    ids = tokens(length=12)
    options = {"max_new_tokens": 14, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    plain = pruned.generate(ids, **options, use_cache=False)
    assert plain.shape[1] == 26
    assert torch.equal(pruned.generate(ids, **options), plain)
    assert torch.equal(pruned.generate(ids, **options, cache_implementation="static"), plain)
    beams = pruned.generate(ids, **options, num_beams=3, use_cache=False)
    assert torch.equal(pruned.generate(ids, **options, num_beams=3), beams)


def test_speculative_generation(pruned):
    """Guesses that are turned down are cropped from the cache, the layers without attention included."""
    try:
        DynamicLayer().crop(-1)
    except TypeError:
        pytest.skip("this transformers can't crop the cache of a layer that stores nothing")
    ids = tokens(1, 12)
    options = {"max_new_tokens": 14, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(pruned.generate(ids, **options, prompt_lookup_num_tokens=3), pruned.generate(ids, **options))


def test_left_padding(pruned):
    ids = tokens(1, 12)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = (padded != 0).long()
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    near(logits(pruned, padded, attention_mask=mask, position_ids=places)[:, 5:], logits(pruned, ids))
    alone = pruned.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
    both = pruned.generate(padded, max_new_tokens=8, do_sample=False, attention_mask=mask)
    assert torch.equal(both[:, 5:], alone)


def test_eager_equals_sdpa_and_the_choice_reaches_every_layer(pruned):
    ids, model = tokens(), copy.deepcopy(pruned)
    if getattr(model.config, "attn_logit_softcapping", None):  # Gemma 2
        pytest.skip("only eager attention caps the scores")
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    near(logits(model, ids), logits(pruned, ids))
    used = {module.config._attn_implementation for module in model.modules() if hasattr(module, "o_proj")}
    assert used == {"eager"}
    assert pruned.config._attn_implementation == "sdpa"


def test_intermediate_outputs(plan, pruned):
    model = copy.deepcopy(pruned)
    model.set_attn_implementation("eager")
    output = model(tokens(), output_attentions=True, output_hidden_states=True)
    assert [weights.shape[1] for weights in output.attentions] == [len(kept.heads) for kept in plan if kept.heads]
    assert len(output.hidden_states) == len(plan) + 1
    for i, kept in enumerate(plan):
        if not kept.heads and not kept.channels and i < len(plan) - 1:
            assert torch.equal(output.hidden_states[i], output.hidden_states[i + 1])


def test_gradient_checkpointing(pruned):
    ids = tokens()
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(pruned).train()
        if checkpointing:
            newer = hasattr(model, "activation_checkpointing_enable")
            model.activation_checkpointing_enable() if newer else model.gradient_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.model.layers)
        torch.manual_seed(0)
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])
