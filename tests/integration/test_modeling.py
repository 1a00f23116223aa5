"""Models whose layers differ: equal to the masked dense model, and at home in everything transformers does."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny.models import SIZES, tiny_config, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer

from darwinlm.families.pruned import auto_map, modeling_source, pruned_classes, pruned_config

NAMES = {
    "llama": ("Llama", "llama"),
    "mistral": ("Mistral", "mistral"),
    "qwen2": ("Qwen2", "qwen2"),
    "qwen3": ("Qwen3", "qwen3"),
    "gemma": ("Gemma", "gemma"),
    "gemma2": ("Gemma2", "gemma2"),
    "gemma3_text": ("Gemma3", "gemma3", "Text"),
    "smollm3": ("SmolLM3", "smollm3"),
    "granite": ("Granite", "granite"),
    "phi3": ("Phi3", "phi3"),
}
GROUPS, PER_GROUP, WIDTH = 3, 2, 96
ALL = [(group, head) for group in range(GROUPS) for head in range(PER_GROUP)]


@dataclass
class Kept:
    """What stays of one block: query heads as (group, head in group), and MLP channels; perhaps all KV heads."""

    heads: list[tuple[int, int]] = field(default_factory=lambda: ALL)
    channels: list[int] = field(default_factory=lambda: list(range(WIDTH)))
    all_groups: bool = False

    @property
    def groups(self) -> list[int]:
        return list(range(GROUPS)) if self.all_groups else sorted({group for group, _ in self.heads})

    @property
    def cached(self) -> int:
        return len(self.heads) if self.all_groups else len(self.groups)

    def overrides(self) -> dict:
        skip = [name for name, kept in (("attention", self.heads), ("mlp", self.channels)) if not kept]
        sizes = {}
        if self.heads:
            sizes |= {"num_attention_heads": len(self.heads), "num_key_value_heads": self.cached}
        if self.heads and self.all_groups:
            sizes |= {"query_groups": [group for group, _ in self.heads], "stored_kv_heads": GROUPS}
        if self.channels:
            sizes |= {"intermediate_size": len(self.channels)}
        return {**sizes, **({"skip": skip} if skip else {})}


ODD, EVEN = list(range(1, WIDTH, 2)), list(range(0, WIDTH, 3))
PLANS = {
    # the first layer has no attention, a middle one is empty, the last has no MLP and one head a group
    "no attention first": [Kept([]), Kept(ALL[:2] + ALL[4:], ODD), Kept([], []), Kept([(0, 1), (1, 0), (2, 1)], [])],
    # the first layer is empty, so is the attention of the first full layer of a model with sliding ones
    "nothing first": [Kept([], []), Kept([], EVEN), Kept([(1, 0)]), Kept()],
    # query heads go one by one, keys and values stay
    "query heads": [
        Kept([(0, 1), (1, 0), (1, 1)], all_groups=True),
        Kept([(2, 0)], ODD, all_groups=True),
        Kept([]),
        Kept(),
    ],
    # only widths differ
    "widths": [Kept(), Kept(ALL[2:4], EVEN), Kept([(0, 0), (2, 1)]), Kept(channels=ODD)],
    # only whole sub-layers go
    "skips": [Kept(), Kept([]), Kept(channels=[]), Kept([], [])],
}


def rows(weight: torch.Tensor, blocks: list[int], size: int, dim: int = 0) -> torch.Tensor:
    index = torch.tensor([block * size + i for block in blocks for i in range(size)])
    return weight.index_select(dim, index)


def stays(name: str, weight: torch.Tensor, kept: Kept, size: int) -> torch.Tensor:
    """The rows or columns of a block's weight that stay."""
    heads, channels = [group * PER_GROUP + head for group, head in kept.heads], kept.channels
    keys = [len(ALL) + group for group in kept.groups]
    values = [key + GROUPS for key in keys]
    part, kind = name.split(".")[-2:]
    match part, kind:
        case "q_proj", _:
            return rows(weight, heads, size)
        case "k_proj" | "v_proj", _:
            return rows(weight, kept.groups, size)
        case "qkv_proj", _:
            return rows(weight, heads + keys + values, size)
        case "o_proj", "weight":
            return rows(weight, heads, size, dim=1)
        case "gate_proj" | "up_proj", _:
            return rows(weight, channels, 1)
        case "gate_up_proj", _:
            return rows(weight, channels + [WIDTH + channel for channel in channels], 1)
        case "down_proj", "weight":
            return rows(weight, channels, 1, dim=1)
    return weight


def cut(dense: torch.nn.Module, plan: list[Kept]) -> torch.nn.Module:
    """The smaller model: kept rows and columns of the dense one, loaded strictly."""
    config_class, _, model_class = pruned_classes(*NAMES[dense.config.model_type])
    config = pruned_config(config_class, dense.config, {i: kept.overrides() for i, kept in enumerate(plan)})
    model = model_class(config).eval()
    wanted = model.state_dict()
    state = {name: weight for name, weight in dense.state_dict().items() if name in wanted}
    for name in state:
        if ".layers." in name:
            state[name] = stays(name, state[name], plan[int(name.split(".")[2])], config.head_dim)
    model.load_state_dict(state)
    return model


def masked(dense: torch.nn.Module, plan: list[Kept]) -> torch.nn.Module:
    """The dense model with zeros for what was removed."""
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for block, kept in zip(model.model.layers, plan, strict=True):
            out, down = block.self_attn.o_proj, block.mlp.down_proj
            columns = out.weight.view(out.weight.shape[0], GROUPS, PER_GROUP, -1)
            for group, head in set(ALL) - set(kept.heads):
                columns[:, group, head] = 0
            down.weight[:, sorted(set(range(WIDTH)) - set(kept.channels))] = 0
            for linear, remains in ((out, kept.heads), (down, kept.channels)):
                if not remains and linear.bias is not None:
                    linear.bias.zero_()
    return model


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor, **kwargs) -> torch.Tensor:
    return model(input_ids=ids, **kwargs).logits


def near(a: torch.Tensor, b: torch.Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Threads cost tiny models more than they give, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=NAMES, scope="module")
def dense(request) -> torch.nn.Module:
    return tiny_model(request.param)


@pytest.fixture(params=PLANS, scope="module")
def plan(request) -> list[Kept]:
    return PLANS[request.param]


@pytest.fixture(scope="module")
def pruned(dense, plan) -> torch.nn.Module:
    model = cut(dense, plan)
    model.generation_config.eos_token_id = None
    return model


def test_equals_the_masked_dense_model(dense, plan, pruned):
    ids = tokens()
    near(logits(pruned, ids), logits(masked(dense, plan), ids))
    assert (logits(pruned, ids) - logits(dense, ids)).abs().max() > 0.1


def test_removed_parts_hold_no_weights(plan, pruned):
    names = set(pruned.state_dict())
    for i, kept in enumerate(plan):
        attention = [name for name in names if f"layers.{i}.self_attn" in name or f"layers.{i}.input_layernorm" in name]
        mlp = [name for name in names if f"layers.{i}.mlp" in name or f"layers.{i}.pre_feedforward_layernorm" in name]
        assert bool(attention) == bool(kept.heads)
        assert bool(mlp) == bool(kept.channels)
        if not kept.heads and not kept.channels:
            assert not [name for name in names if f"layers.{i}." in name]
    assert pruned.num_parameters() == sum({id(w): w.numel() for w in pruned.parameters()}.values())


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


def test_save_and_load(pruned, tmp_path):
    pruned.save_pretrained(tmp_path)
    ids = tokens()
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(again) is type(pruned)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again, ids), logits(pruned, ids))
    decoder = AutoModel.from_pretrained(tmp_path)
    assert type(decoder) is type(pruned.model)
    assert torch.equal(decoder(ids).last_hidden_state, pruned.model(ids).last_hidden_state)
    stored = json.loads((tmp_path / "config.json").read_text())
    prefix = NAMES[stored["model_type"].removeprefix("darwinlm_")][0]
    assert stored["auto_map"] == auto_map(prefix)
    assert stored["head_dim"] == pruned.config.head_dim
    assert (tmp_path / "modeling_darwinlm.py").read_text() == modeling_source(*NAMES[pruned.config.model_type[9:]])


def test_built_on_the_meta_device_and_pickled(pruned):
    with torch.device("meta"):
        model = type(pruned)(copy.deepcopy(pruned.config))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert {name: w.shape for name, w in model.named_parameters()} == {
        name: w.shape for name, w in pruned.named_parameters()
    }
    fresh = type(pruned)(copy.deepcopy(pruned.config)).eval()  # one that has run holds hooks of transformers
    assert torch.equal(logits(pickle.loads(pickle.dumps(fresh)), tokens()), logits(fresh, tokens()))


MIXED = PLANS["no attention first"]


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"head_dim": 16}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
        ("qwen2", {"tie_word_embeddings": False}),
        ("qwen2", {"head_dim": 12}),
        ("granite", {"attention_bias": True, "tie_word_embeddings": True}),
        (
            "gemma3_text",
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
        ),
    ],
)
def test_variants_of_families(model_type, overrides, tmp_path):
    dense, ids = tiny_model(model_type, **overrides), tokens()
    pruned = cut(dense, MIXED)
    near(logits(pruned, ids), logits(masked(dense, MIXED), ids))
    pruned.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(again, ids), logits(pruned, ids))
    tied = again.lm_head.weight is again.model.embed_tokens.weight
    assert tied == dense.config.tie_word_embeddings


def test_classes_are_made_once():
    first = pruned_classes("Llama", "llama")
    assert first == pruned_classes("Llama", "llama")
    assert [cls.__name__ for cls in first] == ["DarwinLlamaConfig", "DarwinLlamaModel", "DarwinLlamaForCausalLM"]
    assert {cls.__module__ for cls in first} == {"darwinlm.families.modeling_darwinlm"}
    assert first[0].model_type == "darwinlm_llama"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_attention_heads": 5}, "5 query heads can't be shared evenly by 3"),
        ({"query_groups": [0, 1], "stored_kv_heads": 3}, "query_groups of 2 heads, but 6 query heads"),
        ({"query_groups": [0, 1, 2, 3, 0, 0], "num_key_value_heads": 6, "stored_kv_heads": 3}, "below stored_kv_heads"),
        ({"intermediate_size": 0}, "width 0"),
        ({"skip": ["attn"]}, "skips \\['attn'\\]"),
    ],
)
def test_impossible_layers_are_refused(overrides, message):
    with pytest.raises(Exception, match=message):
        pruned_config(pruned_classes("Llama", "llama")[0], tiny_config("llama"), {1: overrides})


def test_head_size_is_kept_where_the_family_would_divide():
    sizes = {name: value for name, value in SIZES.items() if name != "head_dim"}
    dense = AutoConfig.for_model("qwen2", **sizes)
    assert not hasattr(dense, "head_dim")
    config_class, _, model_class = pruned_classes("Qwen2", "qwen2")
    config = pruned_config(config_class, dense, {0: {"num_attention_heads": 3}})
    assert model_class(config).model.layers[0].self_attn.q_proj.out_features == 3 * 8


def test_a_static_cache_reserves_one_head_for_a_layer_without_attention():
    pruned = cut(tiny_model("llama"), PLANS["skips"])
    assert [layer.num_key_value_heads for layer in pruned.config.per_layer_config] == [3, 1, 3, 1]


FOREIGN_PROCESS = """
    import sys

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "darwinlm":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Hidden())
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    folder, again = sys.argv[1:]
    ids = torch.load(folder + "/ids.pt")
    for place in (folder, again):
        model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        torch.save(model(ids).logits, place + "/logits.pt")
        decoder = AutoModel.from_pretrained(place, trust_remote_code=True)
        assert torch.equal(decoder(ids).last_hidden_state, model.model(ids).last_hidden_state)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        torch.save(made, place + "/made.pt")
        model.set_attn_implementation("eager")
        assert model.model.layers[1].self_attn.config._attn_implementation == "eager"
        if place == folder:
            model.save_pretrained(again)
    assert not any(name.partition(".")[0] == "darwinlm" for name in sys.modules)
"""


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_process_without_the_package_runs_the_checkpoint(model_type, tmp_path):
    pruned = cut(tiny_model(model_type), MIXED)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    names = NAMES[model_type]
    stored = {**pruned.config.to_dict(), "architectures": [type(pruned).__name__], "auto_map": auto_map(names[0])}
    (first / "config.json").write_text(json.dumps(stored))
    (first / "modeling_darwinlm.py").write_text(modeling_source(*names))
    tied = pruned.config.tie_word_embeddings
    state = {name: w for name, w in pruned.state_dict().items() if not (tied and name == "lm_head.weight")}
    save_file(state, first / "model.safetensors", metadata={"format": "pt"})
    ids = tokens(length=12)
    torch.save(ids, first / "ids.pt")
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", textwrap.dedent(FOREIGN_PROCESS), str(first), str(second)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = pruned.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    for place in (first, second):
        assert torch.equal(torch.load(place / "logits.pt"), logits(pruned, ids))
        assert torch.equal(torch.load(place / "made.pt"), made)
        assert json.loads(Path(place, "config.json").read_text())["auto_map"] == auto_map(names[0])
