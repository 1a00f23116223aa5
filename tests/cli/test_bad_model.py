"""A model that can't be used: one clear message, status 2, and nothing half-written."""

import io
import json
import shutil

import pytest
import torch
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.damage import assert_nothing_half_written, edit_config, edit_weights, weight_map, write_index
from transformers import AutoModelForCausalLM

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
BROKEN = {"cut short": lambda whole: whole[:-50], "empty": lambda whole: b"", "junk": lambda whole: b"\xff" * 5000}
AUTOS = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "code.Mine")


def damaged(path, how):
    path.write_bytes(BROKEN[how](path.read_bytes()))


def with_code(folder, model_type, auto_map=AUTOS):
    """The model brings code that leaves a file beside it when it is run."""
    edit_config(folder, model_type=model_type, auto_map=auto_map)
    (folder / "code.py").write_text(f"open({str(folder.with_name('ran'))!r}, 'w').close()\n")


def with_merges(folder, merges):
    tree = json.loads((folder / TOKENIZER).read_text())
    tree["model"]["merges"] = merges
    (folder / TOKENIZER).write_text(json.dumps(tree))


def splits_by(folder, regex):
    tree = json.loads((folder / TOKENIZER).read_text())
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, tree["pre_tokenizer"]]}
    (folder / TOKENIZER).write_text(json.dumps(tree))


def of_value(value):
    return lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].__setitem__((0, 0), value)


UNKNOWN = "the model type '{}' isn't known"
NO_TOKENIZER = ("holds no tokenizer that can be read (", "): put the files of the original model's tokenizer beside")
REFUSED = {
    "a family of transformers": (lambda f: edit_config(f, model_type="gpt2"), (UNKNOWN.format("gpt2"), "qwen3")),
    "a family of nobody": (lambda f: edit_config(f, model_type="foo"), (UNKNOWN.format("foo"), "llama", "YAML file")),
    "an uncut family with code of its own": (lambda f: with_code(f, "minicpm3"), (UNKNOWN.format("minicpm3"),)),
    "a word for a number": (lambda f: edit_config(f, hidden_size="abc"), ("config.json", "expected int, got str")),
    "code of its own": (lambda f: with_code(f, "mine"), (UNKNOWN.format("mine"),)),
    "code of its own under our name": (lambda f: with_code(f, "darwinlm_mine"), (UNKNOWN.format("mine"),)),
    "attention from the hub": (lambda f: edit_config(f, attn_implementation="own/er"), ("attn_implementation", "sdpa")),
    "experts from the hub": (
        lambda f: edit_config(f, text_config={"_experts_implementation": {"": "sonicmoe"}}),
        ("experts_implementation", "may be code from elsewhere"),
    ),
    "labels without numbers": (
        lambda f: edit_config(f, id2label={"a": "x"}),
        ("id2label must be the names of labels by",),
    ),
    "labels in a list": (
        lambda f: edit_config(f, id2label=["x", "y"]),
        ("id2label must be the names of labels by their",),
    ),
    "a billion labels": (lambda f: edit_config(f, num_labels=10**9), ("num_labels is 1000000000, which no model has",)),
    "an unknown problem": (
        lambda f: edit_config(f, problem_type="multi_label"),
        ("problem_type is multi_label, but must be one of regression, single_label", "correct it, or remove the field"),
    ),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), ("holds an adapter of another model",)),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), ("safetensors",)),
    "weights cut short": (lambda f: damaged(f / WEIGHTS, "cut short"), (WEIGHTS,)),
    "no tokenizer": (lambda f: (f / TOKENIZER).unlink(), NO_TOKENIZER),
    "merges of another tokenizer": (lambda f: with_merges(f, [["a", "zz"]]), ("tokenizer",)),
    "a tokenizer that gives up on a text": (
        lambda f: splits_by(f, r"(\w+\s?)+$"),
        ("the model's tokenizer fails on this text (", "give other text"),
    ),
    "another vocabulary": (
        lambda f: edit_config(f, vocab_size=100),
        ("model.embed_tokens.weight is 300 x 48", "requires 100 x 48"),
    ),
    "weights that are NaN": (lambda f: edit_weights(f, of_value(torch.nan)), ("block 1", "aren't finite")),
    "weights that overflow": (
        lambda f: edit_weights(f, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"].fill_(3e38)),
        ("block 1", "gives values that aren't finite on the calibration text"),
    ),
}


@pytest.mark.parametrize("model", REFUSED)
def test_a_model_that_cannot_be_used(prune, model_copy, tmp_path, model):
    change, said = REFUSED[model]
    change(model_copy)
    prune(model=model_copy).refused(*said)
    assert_nothing_half_written(tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model", ["nowhere", "/nowhere/at/all", "./nowhere", "nowhere.gguf", "a/b/c", "own/er"])
def test_a_model_that_is_not_there(prune, tmp_path, model):
    hub = model == "own/er"
    said = ("can't find the model", "check the name, the network") if hub else ("there is no model at", "hub id such")
    prune(model=model).refused(f"'{model}'", *said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://huggingface.co/owner/name/tree/main", "give the hub id owner/name"),
        ("hf.co/owner/name", "give the hub id owner/name"),
        ("https://example.org/model.gguf", "download the model, and give its folder or GGUF file"),
        ("https://huggingface.co/datasets/owner/name", "download the model"),
    ],
)
def test_an_address_is_no_model(prune, tmp_path, address, said):
    prune(model=address).refused(f"there is no model at '{address}', which is an address on the web: {said}")
    assert not (tmp_path / "out").exists()


def test_a_place_that_holds_no_model(command, prune, tmp_path):
    command("prune", "--out", tmp_path / "out").refused("no model is given")
    (tmp_path / "model.bin").write_bytes(b"\x00" * 100)
    prune(model=tmp_path / "model.bin").refused("model.bin is a file, but not a .gguf one")
    (tmp_path / "empty").mkdir()
    prune(model=tmp_path / "empty").refused("holds no model: there is no config.json")
    (tmp_path / "empty" / "model").mkdir()
    (tmp_path / "empty" / "model" / "config.json").touch()
    prune(model=tmp_path / "empty").refused(f"in it; give {tmp_path / 'empty' / 'model'}, the model of this run")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model(prune, command, tmp_path, tiny_text_file, monkeypatch):
    model = tiny_checkpoint(tmp_path / "small", vocab_size=100)
    said = ("vocabulary ends at 99", "belongs to another model")
    prune(model=model).refused(*said)
    command("evaluate", model, "--text", tiny_text_file, "--tokens", 1024, "--sequence-length", 32).refused(*said)
    monkeypatch.setattr("sys.stdin", io.StringIO("the river\n"))
    command("chat", model, "--max-tokens", 8).refused(*said, after="it continues your text")


def test_code_of_its_own_under_a_known_name_is_not_run(prune, model_copy, tmp_path):
    """Families that are known are read by the classes that are known."""
    with_code(model_copy, "llama")
    prune("--until", "export", model=model_copy).succeeded()
    assert "code.Mine" not in (tmp_path / "out" / "model" / "config.json").read_text()
    shutil.rmtree(tmp_path / "out")
    with_code(model_copy, "darwinlm_llama")
    prune("--until", "text", model=model_copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["missing", *BROKEN])
def test_a_damaged_shard(prune, sharded, tmp_path, damage):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.unlink() if damage == "missing" else damaged(shard, damage)
    said = f"lacks {shard.name}" if damage == "missing" else f"{shard.name} is damaged"
    prune(model=sharded).refused(*said.split(" "), "fetch the model again")
    assert_nothing_half_written(tmp_path / "out")
    shard.write_bytes(whole)
    assert prune("--until", "text", model=sharded).code == 0, "the same output folder goes on"


@pytest.mark.parametrize(
    "place", ["../outside.safetensors", "/etc/passwd", "below/model.safetensors", "weights", "..", "."]
)
def test_an_index_that_points_outside_its_folder(prune, sharded, tmp_path, place):
    write_index(sharded, {**weight_map(sharded), "model.norm.weight": place})
    said = ["points outside its folder", place, "don't trust this model"] if place.strip(".") else []
    prune(model=sharded).refused(*said)
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_that_splits_text_in_an_unknown_way(prune, gguf_bytes, tmp_path):
    (tmp_path / "odd.gguf").write_bytes(gguf_bytes.replace(b"gpt-2", b"gpt-x"))
    prune(model=tmp_path / "odd.gguf").refused("how its tokenizer splits text (tokenizer.ggml.pre is 'gpt-x'")
    assert not (tmp_path / "out").exists()


def test_a_whole_gguf_file(prune, gguf_bytes, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes)
    prune(model=path).succeeded()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.dtype == torch.bfloat16
    again = prune(model=path).succeeded()
    assert again.out.count("already done, reused") == 9
