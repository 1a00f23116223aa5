"""Models whose layers differ, at home in everything transformers and its neighbours do with a model."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.tiny.cutting import cut, logits, near, tokens
from transformers import AutoModelForCausalLM, DynamicCache

QUIRKS = (
    *("llama", "gemma2", "gemma3_text", "gemma4_text", "phi3", "olmo2", "mixtral", "qwen3_moe", "deepseek_v2"),
    *("gpt_oss", "qwen3_5_text", "lfm2", "granitemoehybrid_experts"),
)
"""Families with something of their own; all of them are run in test_modeling.py and test_without_package.py."""
PROJECTIONS = ("llama", "phi3", "qwen3", "gemma2", "qwen3_5_text", "gemma4_text")
"""Plain, fused, normed, capped, gated and shared ones."""


@pytest.fixture(
    params=[(name, "no attention first") for name in QUIRKS]
    + [(name, "query heads") for name in PROJECTIONS]
    + [(name, "nothing first") for name in ("llama", "gemma3_text", "gemma4_text", "qwen3_5_text")],
    scope="module",
    ids=" ".join,
)
def case(request):
    """A family and a plan in which something is odd beyond sizes."""
    return request.param


@pytest.fixture(
    params=[(name, "no attention first") for name in QUIRKS] + [(name, "query heads") for name in PROJECTIONS],
    scope="module",
    ids=" ".join,
)
def odd(request):
    return cut(*request.param)


def test_cached_equals_uncached(pruned):
    ids = tokens()
    cache = DynamicCache(config=pruned.config)
    name = "cache" if hasattr(pruned(ids[:, :1]), "cache") else "past_key_values"
    parts = [logits(pruned, part, **{name: cache, "use_cache": True}) for part in ids.split([13, *[1] * 11], dim=1)]
    near(torch.cat(parts, dim=1), logits(pruned, ids), pruned)
    assert cache.get_seq_length() == ids.shape[1]


def test_generation(pruned):
    ids = tokens(length=12)
    options = {"max_new_tokens": 14, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    plain = pruned.generate(ids, **options, use_cache=False)
    assert plain.shape[1] == 26
    assert torch.equal(pruned.generate(ids, **options), plain)
    assert torch.equal(pruned.generate(ids, **options, cache_implementation="static"), plain)
    beams = pruned.generate(ids, **options, num_beams=3, use_cache=False)
    assert torch.equal(pruned.generate(ids, **options, num_beams=3), beams)


def test_left_padding(pruned):
    ids = tokens(1, 12)
    padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1)
    mask = (padded != 0).long()
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    near(logits(pruned, padded, attention_mask=mask, position_ids=places)[:, 5:], logits(pruned, ids), pruned)
    alone = pruned.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
    both = pruned.generate(padded, max_new_tokens=8, do_sample=False, attention_mask=mask)
    assert torch.equal(both[:, 5:], alone)


def test_eager_equals_sdpa_and_the_choice_reaches_every_layer(odd):
    ids, model = tokens(), copy.deepcopy(odd)
    if model.config._attn_implementation == "eager":  # Gemma 2, gpt-oss
        pytest.skip("only eager attention caps the scores or has sinks")
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    near(logits(model, ids), logits(odd, ids), model)
    attentions = [m for m in model.modules() if hasattr(m, "q_proj") or hasattr(m, "qkv_proj")]
    used = {module.config._attn_implementation for module in attentions}
    assert used == {"eager"}
    assert odd.config._attn_implementation == "sdpa"


def test_gradient_checkpointing(odd):
    ids = tokens()
    gradients = []
    for checkpointing in (False, True):
        model = copy.deepcopy(odd).train()
        if checkpointing:
            newer = hasattr(model, "activation_checkpointing_enable")
            model.activation_checkpointing_enable() if newer else model.gradient_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.model.layers)
        torch.manual_seed(0)
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
    assert all(gradient is not None for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers by this name
def test_adapters_are_trained_saved_and_merged(odd, tmp_path):
    ids, before = tokens(), logits(odd, tokens())
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(odd), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted = logits(model, ids)
    assert (adapted - before).abs().max() > 1e-3
    model.train()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)
    model.eval().save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(odd), tmp_path).eval()
    near(logits(again, ids), adapted, odd)
    if all(getattr(config, "query_groups", None) is None for config in odd.config.per_layer_config):
        merged = again.merge_and_unload()
        assert type(merged) is type(odd)
        near(logits(merged, ids), adapted, odd, atol=1e-4)


@pytest.mark.parametrize("plan", ["nothing first", "query heads"])
def test_compiled(plan):
    model = cut("llama", plan)
    ids = tokens()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), backend="aot_eager", fullgraph=True)
    near(logits(compiled, ids, use_cache=False), logits(model, ids), model)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_routers_are_balanced_in_training_though_layers_have_none(model_type):
    model = cut(model_type).train()
    ids = tokens()
    output = model(ids, labels=ids, use_cache=False, output_router_logits=True)
    routers = [name for name, _ in model.named_modules() if name.endswith(("mlp.gate", "mlp.router"))]
    assert len(output.router_logits) == len(routers) > 0
    output.loss.backward()
    assert all(model.get_submodule(name).weight.grad.abs().max() > 0 for name in routers)


@pytest.mark.parametrize("plan", ["no attention first", "nothing first", "query heads"])
@pytest.mark.parametrize("share", [0.75, 0.85])
def test_automatic_placement_keeps_blocks_whole(tmp_path, plan, share):
    """What doesn't fit into the memory lies on the disk and is fetched block by block."""
    pytest.importorskip("accelerate", reason="the extra gguf")
    model = cut("llama", plan)
    model.save_pretrained(tmp_path / "model")
    memory = {"cpu": int(share * sum(w.numel() * w.element_size() for w in model.parameters()))}
    placed = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map="auto", max_memory=memory, offload_folder=tmp_path / "offload"
    ).eval()
    assert set(placed.hf_device_map.values()) == {"cpu", "disk"}
    assert not any(name.startswith("model.layers.") and name.count(".") > 2 for name in placed.hf_device_map)
    ids = tokens()
    near(logits(placed, ids), logits(model, ids), model)
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(placed.generate(ids, **options), model.generate(ids, **options))
