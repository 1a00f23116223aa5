"""`darwinlm import`: other tools' pruned checkpoints, converted so that they compute the same."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.pruned import logits_of as logits
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint
from transformers import AutoModelForCausalLM

H = 32  # columns of a head


def edited(folder, change):
    """Change a checkpoint's tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


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


def imported(command, folder, *options, expected=None):
    """Import a folder, to the same logits; sizes of its layers."""
    expected, out = logits(folder) if expected is None else expected, folder.with_name("out")
    command("import", folder, "--out", out, *options).succeeded()
    torch.testing.assert_close(logits(out), expected, atol=2e-5, rtol=2e-5)
    return layers(out)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "granite"])
def test_zeros_are_cut_out(command, tmp_path, model_type):
    overrides = {"layer_types": ["full_attention"] * 3} if model_type == "gemma2" else {}
    folder = plain_checkpoint(tmp_path / "zeros", model_type, **overrides)

    def change(tensors):
        without_heads(tensors, 0, (2, 3))  # a whole KV group
        without_heads(tensors, 1, range(4))
        tensors[name(2, "mlp.down_proj")].zero_()
        tensors[name(0, "mlp.down_proj")][:, 5:10] = 0
        tensors[name(0, "mlp.gate_proj")][20:23] = 0
        tensors[name(0, "mlp.up_proj")][90:] = 0

    found = imported(command, edited(folder, change))
    assert found == [(set(), 2, 1, 82), ({"attention"}, 1, 1, 96), ({"mlp"}, 4, 2, 96)]
    report = json.loads((tmp_path / "out" / "import.json").read_text())
    assert report["notes"][0] == "6 of 12 query heads and 178 of 288 channels have an effect"
    assert report["bytes"] < (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("uneven", [False, True])
def test_zeros_are_cut_out_of_fused_projections(command, tmp_path, uneven):
    folder = plain_checkpoint(tmp_path / "zeros", "phi3", tie_word_embeddings=False)

    def change(tensors):
        without_heads(tensors, 0, (1,) if uneven else (0, 1))
        tensors[name(1, "self_attn.qkv_proj")][4 * H + 2 * H + H :] = 0  # the values of the last KV head
        tensors[name(2, "mlp.gate_up_proj")][90:96] = 0  # of gates
        tensors[name(2, "mlp.gate_up_proj")][96 : 96 + 20] = 0  # of what they open for

    first = (set(), 3, 3, 96) if uneven else (set(), 2, 1, 96)
    assert imported(command, edited(folder, change)) == [first, (set(), 2, 1, 96), (set(), 4, 2, 70)]


def test_values_of_zeros_make_a_group_useless(command, tmp_path):
    folder = edited(
        plain_checkpoint(tmp_path / "zeros", "llama"), lambda tensors: tensors[name(1, "self_attn.v_proj")][:H].zero_()
    )
    assert imported(command, folder)[1] == (set(), 2, 1, 96)


def test_unevenly_removed_heads_keep_their_kv_heads(command, tmp_path):
    folder = edited(plain_checkpoint(tmp_path / "zeros", "llama"), lambda tensors: without_heads(tensors, 1, (1,)))
    imported(command, folder)
    row = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.per_layer_config[1]
    assert (row.query_groups, row.stored_kv_heads) == ([0, 1, 1], 2)


def test_an_output_bias_is_kept_though_all_heads_are_zeros(command, tmp_path):
    folder = plain_checkpoint(tmp_path / "zeros", "llama", attention_bias=True, mlp_bias=True)

    def change(tensors):
        tensors[name(1, "self_attn.o_proj")].zero_()
        tensors[name(2, "mlp.down_proj")].zero_()

    assert imported(command, edited(folder, change))[1:] == [(set(), 1, 1, 96), (set(), 4, 2, 1)]


def test_equal_layers_become_the_plain_class(command, tmp_path):
    def change(tensors):
        for block in range(3):
            without_heads(tensors, block, (0, 1))
            tensors[name(block, "mlp.down_proj")][:, 64:] = 0

    folder = edited(plain_checkpoint(tmp_path / "zeros", "llama"), change)
    assert command("import", folder, "--out", tmp_path / "out").code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    assert not list((tmp_path / "out").glob("*.py"))


def per_layer_shapes(folder, model_type, kept_heads, widths, **fields):
    """A checkpoint as DarwinLM publishes them: query heads cut, K and V whole; and the same with zeros, for logits."""
    plain_checkpoint(folder, model_type)
    tensors = load_file(folder / "model.safetensors")
    zeros = edited(
        plain_checkpoint(folder.with_name("zeros"), model_type),
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


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
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


LISTED = [[0, 2], [1, 2, 3], [3]]
FORMS = {
    "list": LISTED,
    "mapping": {str(block): row for block, row in enumerate(LISTED)},
    "nested": {str(block): {"heads": row} for block, row in enumerate(LISTED)},
}


@pytest.mark.parametrize("form", FORMS)
def test_heads_that_the_configuration_lists(command, tmp_path, form):
    expected = per_layer_shapes(tmp_path / "model", "llama", LISTED, [96, 32, 64], whatever=FORMS[form])
    imported(command, tmp_path / "model", expected=expected)


def test_heads_shared_out_evenly(command, tmp_path):
    """A multiple of the KV heads is shared as every attention shares it."""
    expected = per_layer_shapes(tmp_path / "model", "llama", [(0, 2), (0, 1, 2, 3), (1, 3)], [96, 32, 64])
    imported(command, tmp_path / "model", expected=expected)


def test_what_cannot_be_imported(command, tmp_path):
    out = tmp_path / "out"
    ours = pruned_checkpoint(tmp_path / "ours", "llama", {1: (2, 1, 64)})
    command("import", ours, "--out", out).refused("is already a darwinlm model")
    command("import", tmp_path / "nowhere", "--out", out).refused("there is no model at")
    (tmp_path / "empty").mkdir()
    command("import", tmp_path / "empty", "--out", out).refused("there is no config.json in it")
    plain = plain_checkpoint(tmp_path / "plain", "llama")
    command("import", plain, "--out", out, "--family", "bert").refused("--family bert: known are")
    command("import", plain, "--out", out, "--head-dim", 7).refused("--head-dim")
    command("import", plain, "--out", out, "--query-groups", "last").refused("must be first or spread")
    command("import", plain, "--out", plain).refused("which this command reads")
    command("import", plain_checkpoint(tmp_path / "moe", "mixtral"), "--out", out).refused("is a mixture of experts")
    path = plain / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k not in ("head_dim", "num_attention_heads")}))
    command("import", plain, "--out", out).refused("doesn't give the size of a head")
    path.write_text("{")
    command("import", plain, "--out", out).refused("isn't JSON")
    path.write_text(json.dumps({**config, "model_type": "strange"}))
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../../etc/passwd"}}
    (plain / "model.safetensors.index.json").write_text(json.dumps(index))
    command("import", plain, "--out", out).refused("points outside its folder")
    (plain / "model.safetensors.index.json").unlink()
    edited(plain, lambda tensors: [tensors.pop(key) for key in list(tensors) if "self_attn" in key])
    command("import", plain, "--out", out).refused("fit no known family", "give --family")
    part = edited(plain_checkpoint(tmp_path / "part", "llama"), lambda tensors: tensors.pop("model.norm.weight"))
    command("import", part, "--out", out).refused("lacks model.norm.weight: it isn't a whole model")
    more = edited(
        plain_checkpoint(tmp_path / "more", "llama"), lambda found: found.update({"extra.weight": torch.ones(2)})
    )
    command("import", more, "--out", out).refused("holds the tensor extra.weight, which a llama model does not have")
    edited(part, lambda tensors: [tensors.update({f"body.{key}": tensors.pop(key)}) for key in list(tensors)])
    command("import", part, "--out", out, "--family", "llama").refused(
        "holds no tensors of a llama model: give the right --family"
    )
    assert not out.exists()
    config = json.loads((plain / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    (plain / "config.json").write_text(json.dumps(config))
    command("import", plain, "--out", out).refused("a quantised model can't be imported")


def test_a_cut_that_goes_wrong_is_seen(command, tmp_path, monkeypatch):
    from darwinlm.importing import convert

    folder = edited(plain_checkpoint(tmp_path / "zeros", "llama"), lambda tensors: without_heads(tensors, 1, (0, 1)))
    monkeypatch.setattr(
        convert, "useful_units", lambda _, part, sizes, __: list(range(90 if part.name == "mlp" else sizes.heads))
    )
    command("import", folder, "--out", tmp_path / "out").refused("the export fails its check", "block 0 mlp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zeros"]
