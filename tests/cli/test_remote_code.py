"""A checkpoint's code never runs, whoever asks for it."""

import json
from pathlib import Path

import pytest
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets


@pytest.fixture
def with_code(model_copy: Path, tmp_path: Path) -> Path:
    """A model whose tokenizer is code of its own, which leaves the file `ran`."""
    (model_copy / "tokenizer.json").unlink()
    tree = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["code.Mine", None]}}
    (model_copy / "tokenizer_config.json").write_text(json.dumps(tree))
    (model_copy / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    return model_copy


def test_a_tokenizer_that_is_code_is_refused(command, with_code, finished_copy, tiny_text_file, tmp_path):
    text = ("--text", tiny_text_file, "--out", tmp_path / "new")
    for words in (
        ("prune", with_code, *sets(SETTINGS)),
        ("recover", finished_copy, "--teacher", with_code, "--tokens", 512),
    ):
        command(*words, *text).refused("holds no tokenizer", "its own Python code, which never runs here")
    assert not (tmp_path / "ran").exists()


def test_a_recipe_does_not_let_code_run(command, with_code, tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps({"model": str(with_code), "allow_remote_code": True}))
    command("plan", "--recipe", tmp_path / "recipe.yaml").refused("unknown field 'allow_remote_code'")
    assert not (tmp_path / "ran").exists()
