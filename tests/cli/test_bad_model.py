"""A model that can't be used: one clear message, status 2, and nothing half-written."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import INDEX, assert_nothing_half_written, edit_config, weight_map, write_index
from tests.tiny.tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

# -------------------------------------------------------------------------------------------------- the model's name


@pytest.mark.parametrize("model", ["nowhere", "/nowhere/at/all", "./nowhere", "nowhere.gguf", "a/b/c"])
def test_a_model_that_is_not_there(prune, tmp_path, model):
    prune(model=model).refused(f"there is no model at '{model}'", "hub id such as owner/name")
    assert not (tmp_path / "out").exists()


def test_a_hub_id_without_a_network(prune, tmp_path):
    prune(model="own/er").refused("can't find the model 'own/er'", "check the name, the network")
    assert not (tmp_path / "out").exists()


def test_no_model(command, tmp_path):
    command("prune", "--out", tmp_path / "out").refused("no model is given")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_model(prune, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x00" * 100)
    prune(model=tmp_path / "model.bin").refused("model.bin is a file, but not a .gguf one")


def test_a_folder_that_is_no_model(prune, tmp_path):
    (tmp_path / "empty").mkdir()
    prune(model=tmp_path / "empty").refused("holds no model: there is no config.json")


# --------------------------------------------------------------------------------------------------------- config.json


@pytest.mark.parametrize("model_type", ["gpt2", "foo"])
def test_a_family_that_is_not_known(prune, model_copy, tmp_path, model_type):
    edit_config(model_copy, model_type=model_type)
    prune(model=model_copy).refused(f"the model type '{model_type}' isn't known", "llama", "qwen3", "YAML file")
    assert not (tmp_path / "out").exists()


def test_a_family_that_cannot_be_cut_is_refused_before_its_code_is_asked_for(prune, model_copy, tmp_path):
    edit_config(model_copy, model_type="minicpm3", auto_map={"AutoConfig": "code.Config"})
    prune(model=model_copy).refused("can't be pruned: its keys and values are compressed (multi-head latent attention)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model_type": ""}', "null"])
def test_a_configuration_that_is_none(prune, model_copy, content):
    (model_copy / "config.json").write_text(content)
    prune(model=model_copy).refused("config.json")


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": "four"},
        {"num_attention_heads": 5},
        {"hidden_size": None},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 5},
        {"num_hidden_layers": -1},
        {"intermediate_size": 64},
        {"num_key_value_heads": 4},
        {"hidden_size": 96},
    ],
    ids=str,
)
def test_a_configuration_that_does_not_fit(prune, model_copy, tmp_path, fields):
    edit_config(model_copy, **fields)
    prune(model=model_copy).refused()
    assert_nothing_half_written(tmp_path / "out")


def test_a_vocabulary_that_does_not_fit_the_weights(prune, model_copy):
    edit_config(model_copy, vocab_size=100)
    prune(model=model_copy).refused("model.embed_tokens.weight is 300 x 48", "requires 100 x 48")


def test_a_vocabulary_that_is_too_small_for_the_tokenizer(prune, tmp_path):
    model = tiny_checkpoint(tmp_path / "small", vocab_size=100)
    prune(model=model).refused("vocabulary ends at 99", "belongs to another model")


def test_evaluate_and_chat_with_a_tokenizer_of_another_model(command, tmp_path, tiny_text_file, monkeypatch):
    model = tiny_checkpoint(tmp_path / "small", vocab_size=100)
    words = ("--text", tiny_text_file, "--tokens", 1024, "--sequence-length", 32)
    command("evaluate", model, *words).refused("vocabulary ends at 99", "belongs to another model")
    monkeypatch.setattr("sys.stdin", io.StringIO("the river\n"))
    command("chat", model, "--max-tokens", 8).refused("vocabulary ends at 99", "belongs to another model")


def test_code_of_its_own_without_permission(prune, model_copy, tmp_path):
    ran = tmp_path / "ran"
    edit_config(model_copy, model_type="mine", auto_map={"AutoConfig": "code.Config"})
    (model_copy / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    prune(model=model_copy).refused("wants to run its own Python code", "--allow-remote-code")
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


def test_code_of_its_own_under_a_known_name_is_not_run(prune, model_copy, tmp_path):
    ran = tmp_path / "ran"
    autos = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "code.Mine")
    (model_copy / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    edit_config(model_copy, model_type="darwinlm_mine", auto_map=autos)
    prune(model=model_copy).refused("wants to run its own Python code")
    for permission in ((), ("--allow-remote-code",)):
        edit_config(model_copy, model_type="llama", auto_map=autos)
        done = prune(*permission, model=model_copy)
        assert done.code == 0, done.err
        assert "code.Mine" not in (tmp_path / "out" / "model" / "config.json").read_text()
        shutil.rmtree(tmp_path / "out")
    edit_config(model_copy, model_type="darwinlm_llama", auto_map=autos)
    prune("--until", "plan", model=model_copy)
    assert not ran.exists(), "families that are known are read by the classes that are known"


def test_code_of_its_own_that_is_not_there(prune, model_copy):
    edit_config(model_copy, model_type="mine", auto_map={"AutoConfig": "code.Config"})
    prune("--allow-remote-code", model=model_copy).refused("config.json", "code.py")


# ------------------------------------------------------------------------------------------------------------- weights


def test_a_missing_shard(prune, sharded, tmp_path):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    prune(model=sharded).refused(f"lacks {shard.name}", "fetch the model again")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "junk"])
def test_a_damaged_shard(prune, sharded, tmp_path, damage):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes({"truncated": whole[:-50], "empty": b"", "junk": b"\xff" * 5000}[damage])
    prune(model=sharded).refused(shard.name, "is damaged", "fetch the model again")
    assert_nothing_half_written(tmp_path / "out")
    shard.write_bytes(whole)
    assert prune("--until", "database", model=sharded).code == 0, "the same output folder goes on"


@pytest.mark.parametrize("damage", ["truncated", "empty", "junk", "missing"])
def test_a_damaged_single_file(prune, model_copy, tmp_path, damage):
    path = model_copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-50], "empty": b"", "junk": b"\xff" * 5000, "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    prune(model=model_copy).refused("safetensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "below/model.safetensors"])
def test_an_index_that_points_outside_its_folder(prune, sharded, tmp_path, place):
    write_index(sharded, {**weight_map(sharded), "model.norm.weight": place})
    prune(model=sharded).refused("points outside its folder", place, "don't trust this model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["..", "."])
def test_an_index_that_points_at_a_folder(prune, sharded, place):
    write_index(sharded, {**weight_map(sharded), "model.norm.weight": place})
    prune(model=sharded).refused()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_is_none(prune, sharded, content):
    (sharded / INDEX).write_text(content)
    prune(model=sharded).refused()


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_a_weight_that_is_missing(prune, sharded, tmp_path, name):
    shards = weight_map(sharded)
    del shards[name]
    write_index(sharded, shards)
    ended = prune(model=sharded)
    ended.refused()
    assert name.rpartition(".layers.")[2].removeprefix("1.") in ended.err, "it says which one"
    assert_nothing_half_written(tmp_path / "out")


def test_a_weight_that_is_not_in_its_shard(prune, sharded):
    shards = weight_map(sharded)
    name = "model.layers.1.self_attn.q_proj.weight"
    shards[name] = next(shard for shard in shards.values() if shard != shards[name])
    write_index(sharded, shards)
    prune(model=sharded).refused(name)


def test_buffers_that_older_checkpoints_carry_do_no_harm(prune, model_copy):
    path = model_copy / "model.safetensors"
    tensors = load_file(path) | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(4)}
    save_file(tensors, path, metadata={"format": "pt"})
    assert prune("--until", "database", model=model_copy).code == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(prune, model_copy, value):
    path = model_copy / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    prune(model=model_copy).refused("block 1", "aren't finite")


@pytest.mark.parametrize("content", [None, "", "{", "{}"])
def test_a_tokenizer_that_can_not_be_read(prune, model_copy, content):
    if content is None:
        (model_copy / "tokenizer.json").unlink()
    else:
        (model_copy / "tokenizer.json").write_text(content)
    prune(model=model_copy).refused(
        "holds no tokenizer that can be read (", "): put the files of the original model's tokenizer beside"
    )


def test_a_tokenizer_whose_parts_do_not_fit(prune, model_copy):
    path = model_copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"] = [["a", "zz"]]
    path.write_text(json.dumps(tokenizer))
    prune(model=model_copy).refused("tokenizer")


# ---------------------------------------------------------------------------------------------------------------- GGUF

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def gguf_bytes(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The tiny Llama as a GGUF file."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(48)
    writer.add_block_count(4)
    writer.add_feed_forward_length(96)
    writer.add_head_count(6)
    writer.add_head_count_kv(3)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(300)
    vocabulary = tiny_tokenizer().get_vocab()
    tokens = [*sorted(vocabulary, key=lambda token: vocabulary[token]), "ab"]
    tokens += [f"<unused{index}>" for index in range(300 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 300)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in load_file(tiny_llama / "model.safetensors").items():
        owner = name.removesuffix(".weight")
        prefix = ""
        if owner.startswith("model.layers."):
            block, _, owner = owner.removeprefix("model.layers.").partition(".")
            prefix = f"blk.{block}."
        writer.add_tensor(f"{prefix}{GGUF_NAMES[owner]}.weight", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("share", [0, 3, 4, 20, 100, 5000, 0.05, 0.5, 0.999])
def test_a_truncated_gguf_file(prune, gguf_bytes, tmp_path, share):
    length = share if isinstance(share, int) else int(share * len(gguf_bytes))
    (tmp_path / "cut.gguf").write_bytes(gguf_bytes[:length])
    prune(model=tmp_path / "cut.gguf").refused("can't read the GGUF file", "cut.gguf")
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_that_is_none(prune, tmp_path):
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 1000)
    prune(model=tmp_path / "junk.gguf").refused("can't read the GGUF file", "junk.gguf")


def test_a_gguf_file_that_splits_text_in_an_unknown_way(prune, gguf_bytes, tmp_path):
    (tmp_path / "odd.gguf").write_bytes(gguf_bytes.replace(b"smollm", b"smallm"))
    prune(model=tmp_path / "odd.gguf").refused("can't read the GGUF file", "odd.gguf", "tokenizer.ggml.pre is 'smallm'")
    assert not (tmp_path / "out").exists()


def test_a_whole_gguf_file(prune, gguf_bytes, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes)
    ended = prune(model=path)
    assert ended.code == 0, ended
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.dtype == torch.bfloat16
    again = prune(model=path)
    assert again.code == 0
    assert again.out.count("done before, reused") == 9
