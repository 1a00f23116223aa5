"""A checkpoint's code runs with the permission of the caller only: no recipe and no record gives it."""

import json
from pathlib import Path

import pytest
import yaml
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets

SAID = "allow_remote_code is not a setting: only --allow-remote-code, or an argument in Python"


@pytest.fixture
def with_code(model_copy: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer is code of its own, which leaves the file `ran`."""
    (model_copy / "tokenizer.json").unlink()
    tree = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (model_copy / "tokenizer_config.json").write_text(json.dumps(tree))
    (model_copy / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    return model_copy


@pytest.mark.parametrize("name", ["prune", "plan"])
@pytest.mark.parametrize("given", ["a recipe", "a section", "--set"])
def test_a_recipe_does_not_let_code_run(command, with_code, tiny_text_file, tmp_path, name, given):
    recipe = {"model": str(with_code), "text": {"source": str(tiny_text_file)}}
    path, more = tmp_path / "recipe.yaml", ()
    if given == "a recipe":
        recipe["allow_remote_code"] = True
    elif given == "a section":
        recipe["compute"] = {"allow_remote_code": True}
    else:
        more = ("--set", "allow_remote_code=true")
    path.write_text(yaml.safe_dump(recipe))
    out = ("--out", tmp_path / "out") if name == "prune" else ()
    ended = command(name, "--recipe", path, *more, *out, *sets(SETTINGS))
    assert not (tmp_path / "ran").exists()
    ended.refused(SAID)


def test_a_record_does_not_let_code_run(command, finished_copy, with_code, tiny_text_file, tmp_path):
    path = finished_copy / "summary.json"
    summary = json.loads(path.read_text())
    summary["recipe"] |= {"allow_remote_code": True, "model": str(with_code)}
    path.write_text(json.dumps(summary))
    words = ("recover", finished_copy, "--tokens", 512, "--text", tiny_text_file, "--out", tmp_path / "recovered")
    ended = command(*words)
    assert not (tmp_path / "ran").exists()
    ended.refused(SAID)


def test_the_caller_lets_it_run(command, with_code, tiny_text_file, tmp_path):
    words = ("prune", with_code, "--text", tiny_text_file, "--out", tmp_path / "out", *sets(SETTINGS))
    command(*words).refused("wants to run its own Python code", "--allow-remote-code")
    assert not (tmp_path / "ran").exists()
    command(*words, "--allow-remote-code").refused()  # the code holds no tokenizer
    assert (tmp_path / "ran").exists()


def test_recovery_passes_the_permission_on(command, finished_copy, with_code, tiny_text_file, tmp_path):
    words = ("recover", finished_copy, "--teacher", with_code, "--tokens", 512, "--text", tiny_text_file)
    command(*words, "--out", tmp_path / "recovered").refused("wants to run its own Python code")
    assert not (tmp_path / "ran").exists()
    command(*words, "--out", tmp_path / "recovered", "--allow-remote-code").refused()
    assert (tmp_path / "ran").exists()


def test_a_run_with_a_tokenizer_of_its_own_ends_well(command, model_copy, tiny_text_file, tmp_path):
    path = model_copy / "tokenizer_config.json"
    own = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "code.Mine"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    lines = "from transformers import PreTrainedTokenizerFast\n\n\nclass Mine(PreTrainedTokenizerFast):\n    pass\n"
    (model_copy / "code.py").write_text(lines)
    words = ("prune", model_copy, "--keep", "60%", "--text", tiny_text_file, "--out", tmp_path / "out", *sets(SETTINGS))
    command(*words).refused("the tokenizer of", "--allow-remote-code")
    command(*words, "--allow-remote-code").succeeded()
    assert (tmp_path / "out" / "report.html").is_file()
