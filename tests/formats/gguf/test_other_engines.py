"""What other engines read of a saved model: older names of rope settings, and mlx-lm's logits where it is installed."""

import json

import pytest
import torch
from tests.tiny.llama_cpp import LLAMA3
from tests.tiny.models import FAMILIES, tiny_model
from tests.tiny.pruned import any_checkpoint
from transformers import AutoConfig, AutoModelForCausalLM

from darwinlm.formats.transformers.saved import MODEL_FILE, older_rope, save_model
from darwinlm.model.families.family import families

DEFAULT = {"rope_type": "default", "rope_theta": 500.0}
SCALED = LLAMA3["rope_parameters"]
OLDER = {
    "plain": (DEFAULT, {"rope_theta": 500.0, "rope_scaling": None}),
    "scaled": (SCALED, {"rope_theta": 500.0, "rope_scaling": {k: v for k, v in SCALED.items() if k != "rope_theta"}}),
    "a part of each head": (
        DEFAULT | {"partial_rotary_factor": 0.5},
        {"rope_theta": 500.0, "rope_scaling": None, "partial_rotary_factor": 0.5},
    ),
    "two bases": (
        {"full_attention": DEFAULT, "sliding_attention": {"rope_type": "default", "rope_theta": 10.0}},
        {"rope_theta": 500.0, "rope_scaling": None, "rope_local_base_freq": 10.0},
    ),
    "not to be expressed": ({"full_attention": DEFAULT | {"rope_type": "proportional"}}, {}),
    "none": ({}, {}),
}


@pytest.mark.parametrize("case", OLDER)
def test_older_names(case):
    rope, meant = OLDER[case]
    assert older_rope(rope) == meant


@pytest.mark.parametrize("model_type", [name for name, family in families().items() if family.switch is None])
def test_transformers_reads_the_same_configuration(tmp_path, model_type):
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path / "model")
    save_model(model, tmp_path / "again")
    before, after = (AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("model", "again"))
    more = {"partial_rotary_factor": 0.5} if model_type == "phi3" else {}
    more |= {name: 0 for name in ("num_nextn_predict_layers",) if before.get(name)}  # such blocks aren't saved
    assert before | more == after | {"_name_or_path": before["_name_or_path"]}
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    names = {*(families()[model_type].older_rope or {"": "rope_theta"}).values()}
    rotates = "rope_theta" in str(before.get("rope_parameters"))  # BERT's positions are learned
    assert names <= written.keys() or not rotates or model_type == "gemma4_text"


UNEQUAL = {0: (0, 0, 96), 1: (2, 2, 0), 2: (2, 1, 40)}
WHOLE = {0: (0, 0, 96), 1: (4, 2, 0), 2: (4, 2, 40)}
SQUARE = {"hidden_size": 128}
MORE = {
    "mistral": {"sliding_window": None},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention"] * 3},
    "gemma3_text": {
        "num_hidden_layers": 7,
        "layer_types": [*["sliding_attention"] * 5, "full_attention", "sliding_attention"],
    },
    "gemma2": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 64},
    "olmo3": {"num_hidden_layers": 4},
    "smollm3": {"no_rope_layers": [1, 1, 0]},
    "nemotron": {"mlp_bias": True},
}


IN_MLX = [name for name, family in families().items() if "mlx" in family.engines]


@pytest.mark.parametrize("model_type", IN_MLX)
@pytest.mark.parametrize("equal", [False, True], ids=["unequal", "equal"])
def test_layers_in_mlx(tmp_path, model_type, equal):
    """In one pass, and in two through the cache; equal layers without our file or a flag."""
    mx = pytest.importorskip("mlx.core", reason="mlx and mlx-lm")
    load = pytest.importorskip("mlx_lm.utils").load_model
    more, cut = SQUARE | MORE.get(model_type, {}), families()[model_type].attention.cut
    rows, sizes = (WHOLE, {}) if cut == "whole" else (UNEQUAL, {"num_attention_heads": 2, "num_key_value_heads": 1})
    if equal:
        rows, more = None, more | sizes | {"intermediate_size": 40}
    folder = any_checkpoint(tmp_path / "raw", model_type, rows, **more)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    save_model(model, tmp_path / "model")
    assert (tmp_path / "model" / MODEL_FILE).is_file() != equal
    ids = torch.randint(300, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        meant = model(ids).logits
    there, _ = load(tmp_path / "model", trust_remote_code=not equal)
    cache = pytest.importorskip("mlx_lm.models.cache").make_prompt_cache(there)
    given = mx.array(ids.tolist())
    for found in (
        there(given),
        mx.concatenate([there(part, cache=cache) for part in (given[:, :20], given[:, 20:])], 1),
    ):
        logits = torch.tensor(found.tolist())
        assert (logits - meant).norm() < (1e-3 if "gemma" in model_type else 1e-5) * meant.norm()


def test_other_families_get_no_file(tmp_path):
    folder = any_checkpoint(tmp_path / "raw", "qwen2", UNEQUAL)
    save_model(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "model")
    assert not (tmp_path / "model" / MODEL_FILE).exists()
    assert "model_file" not in json.loads((tmp_path / "model" / "config.json").read_text())
    assert set(IN_MLX) < set(FAMILIES)
