"""The command: whatever is wrong with the input, one clear message, status 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint
from tests.tiny.tokenizer import tiny_tokenizer
from transformers import AutoModelForCausalLM

import darwinlm
from darwinlm import artifact, cli, pipeline
from darwinlm.recipe import describe_fields, load_recipe


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> None:
        """It ended with status 2 and one message on stderr that holds all the parts."""
        assert self.code == 2, self
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        for part in parts:
            assert part in lines[0]
        assert "Traceback" not in self.out + self.err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the command in this process: command("prune", folder, "--keep", "50%")."""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # main sets it; here it is taken back afterwards
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["darwinlm", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if stop.code is not None else 0
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def prune(
    command: Callable[..., Ended], tiny_llama: Path, tiny_text_file: Path, tiny_run_settings: tuple[str, ...], tmp_path
) -> Callable[..., Ended]:
    """Prune with tiny settings into tmp_path/out: prune("--keep", "40%", model=..., text=..., out=...)."""

    def run(*more: object, model: object = tiny_llama, text: object = tiny_text_file, out: object = None) -> Ended:
        settings = [part for assignment in tiny_run_settings for part in ("--set", assignment)]
        where = out if out is not None else tmp_path / "out"
        return command("prune", model, "--out", where, "--text", text, *settings, *more)

    return run


def assert_nothing_half_written(out: Path) -> None:
    """No model, no report, no temporary file; a stage is finished or holds no result."""
    assert not (out / "model").exists()
    assert not (out / "summary.json").exists()
    assert not (out / "report.html").exists()
    assert [path for path in out.rglob("*") if path.name.endswith((".tmp", ".partial"))] == []
    for stage in (out / "stages").glob("*"):
        if not (stage / "manifest.json").exists():
            assert {path.name for path in stage.iterdir()} <= {"key.json"}


@pytest.fixture
def model_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A tiny Llama that may be damaged."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def sharded(tiny_llama: Path, tmp_path: Path) -> Path:
    """The same in several shards."""
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(folder, max_shard_size="100KB")
    for path in tiny_llama.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


INDEX = "model.safetensors.index.json"


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder: Path, shards: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))


# -------------------------------------------------------------------------------------------------- the model's name


@pytest.mark.parametrize("model", ["nowhere", "/nowhere/at/all", "./nowhere", "nowhere.gguf", "a/b/c"])
def test_a_model_that_is_not_there(prune, tmp_path, model):
    prune(model=model).refused(f"there is no model at '{model}'", "hub id such as owner/name")
    assert not (tmp_path / "out").exists()


def test_a_hub_id_without_a_network(prune, tmp_path):
    prune(model="own/er").refused("can't find the model 'own/er'", "check the name, the network")
    assert not (tmp_path / "out").exists()


def test_no_model(command, tmp_path):
    command("prune", "--out", tmp_path / "out").refused("no model is named")
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
    prune(model=model_copy).refused("model.embed_tokens.weight is 300 x 48", "asks for 100 x 48")


def test_a_vocabulary_that_is_too_small_for_the_tokenizer(prune, tmp_path):
    model = tiny_checkpoint(tmp_path / "small", vocab_size=100)
    prune(model=model).refused("vocabulary ends at 99", "belongs to another model")


def test_code_of_its_own_without_permission(prune, model_copy, tmp_path):
    ran = tmp_path / "ran"
    edit_config(model_copy, model_type="mine", auto_map={"AutoConfig": "code.Config"})
    (model_copy / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    prune(model=model_copy).refused("wants to run Python code of its own", "--allow-remote-code")
    assert not ran.exists()
    assert not (tmp_path / "out").exists()


def test_code_of_its_own_under_a_known_name_is_not_run(prune, model_copy, tmp_path):
    ran = tmp_path / "ran"
    autos = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "code.Mine")
    (model_copy / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    edit_config(model_copy, model_type="darwinlm_mine", auto_map=autos)
    prune(model=model_copy).refused("wants to run Python code of its own")
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
    prune(model=model_copy).refused("holds no tokenizer that can be read: ")


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


def test_a_whole_gguf_file(prune, gguf_bytes, tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes)
    ended = prune(model=path)
    assert ended.code == 0, ended
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    assert model.dtype == torch.bfloat16
    again = prune(model=path)
    assert again.code == 0
    assert again.out.count("done before, reused") == 8


# ---------------------------------------------------------------------------------------------------------------- text


def test_text_that_is_not_there(prune, tmp_path):
    prune(text=tmp_path / "none.txt").refused("none.txt", "there is no such file or folder")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", " \n\n \t\n"])
def test_text_that_is_empty(prune, tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    prune(text=tmp_path / "empty.txt").refused("empty.txt", "there is no text in it")
    assert not (tmp_path / "out").exists()


def test_text_that_is_too_short(prune, tmp_path):
    (tmp_path / "short.txt").write_text("the river runs under the stone")
    prune(text=tmp_path / "short.txt").refused("short.txt", "is too short", "text.calibration_tokens", "1024")
    assert not (tmp_path / "out").exists()


def test_text_that_is_no_text(prune, tmp_path):
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 40)
    prune(text=tmp_path / "binary.txt").refused("binary.txt", "isn't UTF-8")


def test_text_of_a_format_that_is_not_known(prune, tmp_path):
    (tmp_path / "text.docx").write_bytes(b"PK")
    prune(text=tmp_path / "text.docx").refused("text.docx", "extension")


def test_a_folder_without_text(prune, tmp_path):
    (tmp_path / "texts").mkdir()
    prune(text=tmp_path / "texts").refused("texts", "no file that can be read")


def test_text_from_the_hub_without_a_network(prune):
    pytest.importorskip("datasets")
    prune(text="hf:own/er").refused("hf:own/er", "local text")


def test_text_blocks_that_are_longer_than_the_model_allows(prune):
    prune("--set", "text.sequence_length=512", "--set", "text.calibration_tokens=4096").refused(
        "text.sequence_length is 512", "allows 256 tokens"
    )


# -------------------------------------------------------------------------------------------------- options and recipes


@pytest.mark.parametrize("keep", ["0", "-1", "0%", "101%", "1.5", "200"])
def test_a_share_out_of_range(prune, tmp_path, keep):
    prune("--keep", keep).refused("budget.keep: must be above 0 and at most 100 %")
    assert not (tmp_path / "out").exists()


def test_a_share_without_its_sign(prune):
    prune("--keep", "50").refused("did you mean 50%?")


def test_a_share_just_above_everything_gets_no_absurd_hint(prune):
    ended = prune("--keep", "101%")
    assert "1.01%" not in ended.err


def test_a_share_that_is_no_number(prune):
    prune("--keep", "half").refused("budget.keep", "'half'")


def test_a_budget_below_the_smallest_model(prune, tmp_path):
    prune("--keep", "0.1%").refused("less than the smallest model that the units allow", "0.1000%")
    assert_nothing_half_written(tmp_path / "out")
    assert prune("--keep", "50%", "--until", "plan").code == 0, "the same output folder goes on"


def test_a_budget_that_the_units_can_not_meet(prune):
    """Every level is a multiple of 48 parameters, and the budget leaves no room for rounding."""
    more = ("--set", "budget.tolerance=0.0000001", "--set", "search.start=random")
    prune("--keep", "55.5%", *more).refused("block parameters", "budget.tolerance")


def test_units_that_do_not_fit_the_model(prune):
    prune("--set", "units.mlp_multiple=128").refused("units.mlp_multiple is 128", "only 96 channels")


def test_a_misspelt_field_in_a_recipe(prune, tmp_path):
    (tmp_path / "r.yaml").write_text("search:\n  generation: 3\n")
    prune("--recipe", tmp_path / "r.yaml").refused(
        "r.yaml", "unknown field 'search.generation': did you mean 'generations'?"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["a: [", "- a\n", "just words\n"])
def test_a_recipe_that_is_none(prune, tmp_path, content):
    (tmp_path / "r.yaml").write_text(content)
    prune("--recipe", tmp_path / "r.yaml").refused("r.yaml")


def test_a_recipe_that_is_not_there(prune, tmp_path):
    prune("--recipe", tmp_path / "none.yaml").refused("none.yaml", "No such file")


@pytest.mark.parametrize("assignment", ["budget.keep", "=1", "search.generation=3", "search.generations=x", "a=["])
def test_a_wrong_assignment(prune, tmp_path, assignment):
    prune("--set", assignment).refused()
    assert not (tmp_path / "out").exists()


def test_an_option_that_is_not_known(prune, tmp_path):
    prune("--frobnicate").refused("--frobnicate")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--set", "--keep", "--recipe", "--out"])
def test_an_option_without_its_value(command, option):
    command("prune", "model", option).refused(option)


def test_an_argument_too_many(command):
    command("prune", "model", "another").refused("another")


def test_a_command_that_is_not_known(command):
    command("frobnicate").refused("frobnicate")


def test_no_command_shows_the_help(command):
    ended = command()
    assert ended.code in {0, 2}
    assert "prune" in ended.out + ended.err
    assert "error: \n" not in ended.err, "an empty message"


def test_help_is_no_error(command):
    ended = command("prune", "--help")
    assert ended.code == 0
    assert "--keep" in ended.out
    assert ended.err == ""


def test_a_stage_that_is_not_known(prune, tmp_path):
    prune("--until", "prune").refused("--until prune", "database")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(prune, tmp_path):
    prune("--set", "compute.device=cuda").refused("compute.device", "no GPU", "use auto or cpu")
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_none(prune):
    prune("--set", "compute.device=abacus").refused("compute.device: 'abacus' is no device")


# -------------------------------------------------------------------------------------------------- the output folder


def test_an_output_folder_that_holds_something_else(prune, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("three years of work")
    prune().refused("holds something else", "choose a new or empty output folder")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_an_output_folder_that_is_a_file(prune, tmp_path):
    (tmp_path / "out").write_text("a file")
    prune().refused("is a file: choose another output folder")
    assert (tmp_path / "out").read_text() == "a file"


def test_an_output_folder_below_a_file(prune, tmp_path):
    (tmp_path / "file").write_text("a file")
    prune(out=tmp_path / "file" / "out").refused("can't write")


@pytest.mark.parametrize("marker", ["{}", "[]", '{"made_by": "somebody"}', "{"])
def test_an_output_folder_of_somebody_else(prune, tmp_path, marker):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "darwinlm.json").write_text(marker)
    prune().refused("darwinlm.json")


def test_the_model_itself_as_output_folder(prune, model_copy):
    before = sorted(path.name for path in model_copy.iterdir())
    prune(model=model_copy, out=model_copy).refused("holds something else")
    assert sorted(path.name for path in model_copy.iterdir()) == before


@pytest.fixture
def finished(finished_llama: Path, tmp_path: Path) -> Path:
    """A finished run that may be damaged."""
    return Path(shutil.copytree(finished_llama, tmp_path / "out"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name",
    [
        "text/calibration/tokens.safetensors",
        "plan/plan.json",
        "database/block_0001.safetensors",
        "search/result.json",
        "refit/choices.json",
    ],
)
def test_a_damaged_artifact_of_an_earlier_stage(prune, tmp_path, name):
    """The message names the file; doing what it says mends the run."""
    assert prune("--until", "refit").code == 0
    path = tmp_path / "out" / "stages" / name
    flip(path)
    ended = prune()
    ended.refused(str(path), "is damaged", "run the same command again")
    assert_nothing_half_written(tmp_path / "out")
    folder = re.search(r"delete the folder (\S+) and", ended.err)
    assert folder is not None
    shutil.rmtree(folder[1])
    assert prune("--until", "refit").code == 0


def test_a_damaged_manifest(prune, finished):
    path = finished / "stages" / "search" / "manifest.json"
    path.write_text("{")
    prune("--keep", "60%").refused(str(path), "is damaged")


def test_a_full_disk(prune, tmp_path, monkeypatch):
    original, count = artifact.save_file, [0]

    def save(tensors: Any, to: Path, metadata: Any) -> None:
        count[0] += 1
        if count[0] == 7:  # the third block of the database
            Path(to).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, to, metadata=metadata)

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "save_file", save)
        prune().refused("the disk is full", "run the same command again; finished work is kept")
    database = tmp_path / "out" / "stages" / "database"
    assert {path.name for path in database.iterdir()} == {
        "key.json",
        "block_0000.safetensors",
        "block_0001.safetensors",
    }
    assert prune().code == 0


# ---------------------------------------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize("stage", ["text", "database", "search", "refit", "evaluate"])
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(prune, tmp_path, monkeypatch, stage):
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, f"{stage}_stage", interrupted)
        ended = prune("--keep", "50 %")
    assert ended.code == 130
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1, ended.err
    assert "interrupted" in lines[0]
    assert "finished work is kept" in lines[0]
    assert "darwinlm prune" in lines[0]
    assert f"--out {tmp_path / 'out'}" in lines[0]
    assert "--keep '50 %'" in lines[0], "as a shell takes it"
    assert "Traceback" not in ended.err
    assert prune("--keep", "50 %", "--until", "plan").code == 0


# ------------------------------------------------------------------------------------------------- as its own process


def process(*arguments: object) -> Ended:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(darwinlm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "darwinlm.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_the_process_ends_with_status_2_and_one_message(tmp_path):
    process("prune", tmp_path / "nowhere", "--out", tmp_path / "out").refused("there is no model at")


def test_the_process_prints_nothing_on_stderr_when_all_is_well(tiny_llama, tiny_text_file, tiny_run_settings, tmp_path):
    settings = [part for assignment in tiny_run_settings for part in ("--set", assignment)]
    ended = process("prune", tiny_llama, "--out", tmp_path / "out", "--text", tiny_text_file, *settings)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert str(tmp_path / "out" / "report.html") in ended.out.replace("\n", "")


# ---------------------------------------------------------------------------------------------------------- happy paths


def test_prune_prints_the_table_and_where_things_are(prune, tmp_path):
    ended = prune("--keep", "60%")
    assert ended.code == 0, ended
    assert ended.err == ""
    for word in ("dense", "uniform", "stitched", "refit", "'the river' goes on"):
        assert word in ended.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert f"{summary['budget']['block_params']:,} of {summary['budget']['dense_block_params']:,}" in ended.out
    for name in ("model", "report.html", "summary.json"):
        assert str(tmp_path / "out" / name) in ended.out
        assert (tmp_path / "out" / name).exists()


def test_a_second_prune_says_that_it_reuses(prune):
    assert prune().code == 0
    ended = prune()
    assert ended.code == 0
    assert ended.out.count("done before, reused") == 8


def test_until_search_stops_there(prune, tmp_path):
    ended = prune("--until", "search")
    assert ended.code == 0
    assert "stopped after search" in ended.out
    assert sorted(path.name for path in (tmp_path / "out" / "stages").iterdir()) == [
        "database",
        "plan",
        "scores",
        "search",
        "text",
    ]
    assert not (tmp_path / "out" / "model").exists()


def test_a_recipe_file_does_what_options_do(command, tiny_llama, tiny_text_file, tmp_path):

    recipe = load_recipe(None, SETTINGS, {"model": str(tiny_llama), "text.source": str(tiny_text_file)})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    ended = command("prune", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "out", "--until", "plan")
    assert ended.code == 0, ended
    assert "stopped after plan" in ended.out


def test_schema_prints_every_field(command):
    ended = command("schema")
    assert ended.code == 0
    for name, _, _ in describe_fields():
        assert name in ended.out


def test_schema_is_readable_in_a_narrow_terminal(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ended = command("schema")
    assert ended.code == 0
    assert "budget.keep" in ended.out


def test_version(command):
    ended = command("version")
    assert ended.code == 0
    assert ended.out.strip() == darwinlm.__version__
