"""`darwinlm import`: the paper's published checkpoints, converted so that they compute the same."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.damage import edit_weights
from tests.tiny.pruned import logits_of as logits
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint
from transformers import AutoModelForCausalLM

H = 32  # columns of a head


def name(block, part, leaf="weight"):
    return f"model.layers.{block}.{part}.{leaf}"


def without_heads(tensors, block, heads):
    for head in heads:
        tensors[name(block, "self_attn.o_proj")][:, head * H : (head + 1) * H] = 0


def layers(folder):
    config = AutoModelForCausalLM.from_pretrained(folder).config
    return [
        (set(getattr(row, "skip", ())), row.num_attention_heads, row.num_key_value_heads, row.intermediate_size)
        for row in config.per_layer_config
    ]


def imported(command, folder, *options, expected):
    """Import a folder, to the same logits; sizes of its layers."""
    out = folder.with_name("out")
    command("import", folder, "--out", out, *options).succeeded()
    torch.testing.assert_close(logits(out), expected, atol=2e-5, rtol=2e-5)
    return layers(out)


def per_layer_shapes(folder, model_type, kept_heads, widths, **fields):
    """A checkpoint as DarwinLM publishes them: query heads cut, K and V whole; and the same with zeros, for logits."""
    plain_checkpoint(folder, model_type)
    tensors = load_file(folder / "model.safetensors")
    zeros = plain_checkpoint(folder.with_name("zeros"), model_type)
    edit_weights(
        zeros,
        lambda found: [
            *(without_heads(found, block, set(range(4)) - set(heads)) for block, heads in enumerate(kept_heads)),
            *(found[name(block, "mlp.down_proj")][:, width:].zero_() for block, width in enumerate(widths)),
        ],
    )
    for block, (heads, width) in enumerate(zip(kept_heads, widths, strict=True)):
        rows = [head * H + i for head in heads for i in range(H)]
        for leaf in ("weight", "bias"):
            if name(block, "self_attn.q_proj", leaf) in tensors:
                tensors[name(block, "self_attn.q_proj", leaf)] = tensors[name(block, "self_attn.q_proj", leaf)][rows]
        tensors[name(block, "self_attn.o_proj")] = tensors[name(block, "self_attn.o_proj")][:, rows]
        for part in ("gate_proj", "up_proj"):
            tensors[name(block, f"mlp.{part}")] = tensors[name(block, f"mlp.{part}")][:width]
        tensors[name(block, "mlp.down_proj")] = tensors[name(block, "mlp.down_proj")][:, :width]
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    path = folder / "config.json"
    config = json.loads(path.read_text())
    auto_map = {"AutoConfig": "modeling_x.XConfig"}
    path.write_text(json.dumps({**config, "model_type": "darwinlm", "auto_map": auto_map, "sizes_of": 7, **fields}))
    return logits(zeros)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_layers_of_their_own_shapes(command, tmp_path, model_type):
    """Uneven heads over whole K and V; the i-th query head uses the KV head it had."""
    expected = per_layer_shapes(tmp_path / "model", model_type, [(0, 1, 2), (0, 1, 2, 3), (0, 1, 2)], [40, 96, 64])
    command("import", tmp_path / "model", "--out", tmp_path / "out").refused(
        "block 0: 3 query heads over 2 KV heads", "--query-groups first or spread"
    )
    assert not (tmp_path / "out").exists()
    imported(command, tmp_path / "model", "--query-groups", "first", expected=expected)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert config.model_type == f"darwinlm_{model_type}"
    assert config.per_layer_config[0].query_groups == [0, 0, 1]


def test_equal_layers_become_the_plain_class(command, tmp_path):
    expected = per_layer_shapes(tmp_path / "model", "llama", [(0, 2)] * 3, [64] * 3)
    imported(command, tmp_path / "model", expected=expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert not list((tmp_path / "out").glob("*.py"))


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_absent_attention_and_mlp_are_skipped(command, tmp_path, model_type):
    expected = per_layer_shapes(tmp_path / "model", model_type, [(0, 1, 2, 3), (), (0, 2)], [96, 64, 0])

    def change(tensors):
        for key in list(tensors):
            if ".1.self_attn." in key or ".2.mlp." in key:
                del tensors[key]

    edit_weights(tmp_path / "model", change)
    assert imported(command, tmp_path / "model", expected=expected) == [
        (set(), 4, 2, 96),
        ({"attention"}, 1, 1, 64),
        ({"mlp"}, 2, 2, 96),
    ]
    command("show", tmp_path / "out", "--verify").succeeded()


def test_what_cannot_be_imported(command, tmp_path):
    out = tmp_path / "out"
    ours = pruned_checkpoint(tmp_path / "ours", "llama", {1: (2, 1, 64)})
    command("import", ours, "--out", out).refused("is already a darwinlm model")
    only = "only the published DarwinLM models"
    plain = plain_checkpoint(tmp_path / "plain", "llama")
    for folder, model_type in ((plain, "llama"), (plain_checkpoint(tmp_path / "gemma", "gemma"), "gemma")):
        command("import", folder, "--out", out).refused(f"is a {model_type} model and needs no import", only)
    command("import", plain, "--out", out, "--query-groups", "last").refused("must be first or spread")
    for model_type in ("mixtral", "qwen3", "phi3"):
        folder = plain_checkpoint(tmp_path / model_type, model_type)
        command("import", folder, "--out", out).refused(f"{folder}: its layers hold", only)
    per_layer_shapes(tmp_path / "model", "llama", [(0, 1), (0, 1), (0, 2)], [96, 64, 32])
    model = tmp_path / "model"
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "num_attention_heads"}))
    command("import", model, "--out", out).refused("doesn't give num_attention_heads")
    path.write_text(json.dumps({**config, "head_dim": 24}))
    command("import", model, "--out", out).refused("aren't whole heads of 24 columns")
    path.write_text(json.dumps(config))
    edit_weights(model, lambda tensors: [tensors.update({f"body.{key}": tensors.pop(key)}) for key in list(tensors)])
    command("import", model, "--out", out).refused("has no layers named model.layers", only)
    assert not out.exists()
