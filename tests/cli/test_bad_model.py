"""A model that can't be used: one clear message, status 2, and nothing half-written."""

import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import assert_nothing_half_written, edit_config, weight_map, write_index
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("model", ["nowhere", "/nowhere/at/all", "./nowhere", "nowhere.gguf", "a/b/c", "own/er"])
def test_a_model_that_is_not_there(prune, tmp_path, model):
    hub = model == "own/er"
    said = ("can't find the model", "check the name, the network") if hub else ("there is no model at", "hub id such")
    prune(model=model).refused(f"'{model}'", *said)
    assert not (tmp_path / "out").exists()


def test_no_model(command, tmp_path):
    command("prune", "--out", tmp_path / "out").refused("no model is given")
    assert not (tmp_path / "out").exists()


def test_a_place_that_holds_no_model(prune, model_copy, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x00" * 100)
    prune(model=tmp_path / "model.bin").refused("model.bin is a file, but not a .gguf one")
    (tmp_path / "empty").mkdir()
    prune(model=tmp_path / "empty").refused("holds no model: there is no config.json")
    (tmp_path / "empty" / "model").mkdir()
    (tmp_path / "empty" / "model" / "config.json").touch()
    prune(model=tmp_path / "empty").refused(f"in it; give {tmp_path / 'empty' / 'model'}, the model of this run")
    (model_copy / "adapter_config.json").write_text("{}")
    prune(model=model_copy).refused("holds an adapter of another model: merge the two first")


@pytest.mark.parametrize("model_type", ["gpt2", "foo"])
def test_a_family_that_is_not_known(prune, model_copy, tmp_path, model_type):
    edit_config(model_copy, model_type=model_type)
    prune(model=model_copy).refused(f"the model type '{model_type}' isn't known", "llama", "qwen3", "YAML file")
    assert not (tmp_path / "out").exists()


def test_a_family_that_cannot_be_cut_is_refused_before_its_code_is_asked_for(prune, model_copy, tmp_path):
    edit_config(model_copy, model_type="minicpm3", auto_map={"AutoConfig": "code.Config"})
    prune(model=model_copy).refused("can't be pruned: its keys and values are compressed (multi-head latent attention)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size"])
@pytest.mark.parametrize("value", ["four", None, 0, -1, 5, 96])
def test_a_configuration_that_does_not_fit(prune, model_copy, tmp_path, field, value):
    edit_config(model_copy, **{field: value})
    prune("--until", "plan", model=model_copy).refused()
    assert_nothing_half_written(tmp_path / "out")


def test_a_vocabulary_that_does_not_fit_the_weights(prune, model_copy):
    edit_config(model_copy, vocab_size=100)
    prune(model=model_copy).refused("model.embed_tokens.weight is 300 x 48", "requires 100 x 48")


def test_a_tokenizer_of_another_model(prune, command, tmp_path, tiny_text_file, monkeypatch):
    model = tiny_checkpoint(tmp_path / "small", vocab_size=100)
    said = ("vocabulary ends at 99", "belongs to another model")
    prune(model=model).refused(*said)
    command("evaluate", model, "--text", tiny_text_file, "--tokens", 1024, "--sequence-length", 32).refused(*said)
    monkeypatch.setattr("sys.stdin", io.StringIO("the river\n"))
    command("chat", model, "--max-tokens", 8).refused(*said)


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
        prune(*permission, model=model_copy).succeeded()
        assert "code.Mine" not in (tmp_path / "out" / "model" / "config.json").read_text()
        shutil.rmtree(tmp_path / "out")
    edit_config(model_copy, model_type="darwinlm_llama", auto_map=autos)
    prune("--until", "plan", model=model_copy)
    assert not ran.exists(), "families that are known are read by the classes that are known"


def test_code_of_its_own_that_is_not_there(prune, model_copy):
    edit_config(model_copy, model_type="mine", auto_map={"AutoConfig": "code.Config"})
    prune("--allow-remote-code", model=model_copy).refused("config.json", "code.py")


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


@pytest.mark.parametrize("place", ["../outside.safetensors", "/etc/passwd", "below/model.safetensors", "..", "."])
def test_an_index_that_points_outside_its_folder(prune, sharded, tmp_path, place):
    write_index(sharded, {**weight_map(sharded), "model.norm.weight": place})
    said = ["points outside its folder", place, "don't trust this model"] if place.strip(".") else []
    prune(model=sharded).refused(*said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"])
@pytest.mark.parametrize("how", ["in no shard", "in another shard"])
def test_a_weight_that_is_missing(prune, sharded, tmp_path, name, how):
    shards = weight_map(sharded)
    place = shards.pop(name)
    if how == "in another shard":
        shards[name] = next(shard for shard in shards.values() if shard != place)
    write_index(sharded, shards)
    ended = prune(model=sharded)
    ended.refused(name.rpartition(".layers.1.")[2])
    assert_nothing_half_written(tmp_path / "out")


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


@pytest.mark.parametrize("share", [0, 3, 4, 20, 100, 5000, 0.05, 0.5, 0.999, "junk"])
def test_a_damaged_gguf_file(prune, gguf_bytes, tmp_path, share):
    length = share if isinstance(share, int) else int((share if isinstance(share, float) else 0) * len(gguf_bytes))
    (tmp_path / "cut.gguf").write_bytes(b"junk" * 1000 if share == "junk" else gguf_bytes[:length])
    prune(model=tmp_path / "cut.gguf").refused("can't read the GGUF file", "cut.gguf")
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_that_splits_text_in_an_unknown_way(prune, gguf_bytes, tmp_path):
    (tmp_path / "odd.gguf").write_bytes(gguf_bytes.replace(b"gpt-2", b"gpt-x"))
    prune(model=tmp_path / "odd.gguf").refused("can't read the GGUF file", "odd.gguf", "tokenizer.ggml.pre is 'gpt-x'")
    assert not (tmp_path / "out").exists()


def test_a_whole_gguf_file(prune, gguf_bytes, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes)
    prune(model=path).succeeded()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.dtype == torch.bfloat16
    again = prune(model=path).succeeded()
    assert again.out.count("already done, reused") == 9
