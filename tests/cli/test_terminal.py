"""What a terminal is sent: nothing that it would obey, and no failure of its encoding or of a closed stream."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny.damage import edit_config, edit_weights

from darwinlm.evaluation.conversation import Conversation

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202e"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]")


def _template(folder: Path, template: str) -> None:
    edit = folder / "tokenizer_config.json"
    edit.write_text(json.dumps(json.loads(edit.read_text()) | {"chat_template": template}))


PRINTED = {
    "an answer": (lambda folder: None, ["chat", "model"]),
    "a template's error": (lambda folder: _template(folder, f"{{{{ raise_exception('{EVIL}') }}}}"), ["chat", "model"]),
    "a tensor's name": (
        lambda folder: edit_weights(folder, lambda tensors: tensors.update({f"model.layers.0.{EVIL}": torch.zeros(2)})),
        ["chat", "model"],
    ),
    "a model type": (lambda folder: edit_config(folder, model_type=EVIL), ["chat", "model"]),
    "a field's value": (lambda folder: edit_config(folder, hidden_act=EVIL), ["chat", "model"]),
    "a recipe's key": (
        lambda folder: Path("r.yaml").write_text(json.dumps({EVIL: 1})),
        ["prune", "model", "--recipe", "r.yaml"],
    ),
    "a recipe's path": (lambda folder: None, ["prune", "model", "--recipe", f"{EVIL}.yaml"]),
    "a model's path": (
        lambda folder: folder.rename(EVIL),
        ["plan", EVIL, "--keep", "50%", "--set", "units.mlp_multiple=8"],
    ),
    "a model's path as JSON": (
        lambda folder: (folder.rename(EVIL), Path("t.txt").write_text("many words " * 200)),
        ["evaluate", EVIL, "--text", "t.txt", "--tokens", 32, "--sequence-length", 16, "--json"],
    ),
    "an option": (lambda folder: None, ["plan", "model", f"--{EVIL}"]),
    "a command": (lambda folder: None, [EVIL]),
    "a setting": (lambda folder: None, ["plan", "model", "--set", f"{EVIL}={EVIL}"]),
    "a text": (lambda folder: None, ["evaluate", "model", "--text", EVIL]),
}


@pytest.mark.parametrize("name", PRINTED)
def test_nothing_that_is_printed_is_obeyed(command, model_copy, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    change, words = PRINTED[name]
    change(model_copy)
    monkeypatch.setattr("sys.stdin", ["hello"])
    monkeypatch.setattr("darwinlm.cli.chat._questions", lambda console: ["hello"])
    monkeypatch.setattr("sys.stdin", type("Input", (), {"isatty": lambda self: False})())
    if name == "an answer":
        monkeypatch.setattr(Conversation, "answer", lambda self, text, on_text: on_text(EVIL))
    ended = command(*words)
    assert "owned" in ended.out + ended.err
    assert not OBEYED.search(ended.out + ended.err)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("words", [["show"], ["show", "--json"]], ids=" ".join)
def test_any_encoding(command, finished_llama, monkeypatch, encoding, words):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    ended = command(words[0], finished_llama, *words[1:]).succeeded()
    assert ended.err == ""
    text = written.getvalue().decode(encoding)
    assert json.loads(text) if words[1:] else "channels" in text


@pytest.mark.parametrize(
    ("words", "streams", "status"),
    [("--version", "> /dev/full", 2), ("show", ">&-", 0), ("show", "<&- >&- 2>&-", 0), ("chat", "<&-", 0)],
)
def test_full_and_closed_streams(finished_llama, words, streams, status):
    model = "" if words[0] == "-" else finished_llama
    line = f"{sys.executable} -m darwinlm {words} {model} {streams}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == status, done.stderr


def test_no_columns_and_no_current_folder(command, finished_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    assert "channels" in command("show", finished_llama).succeeded().out
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    command("show", finished_llama).refused("the current folder was removed")


def test_questions_that_are_not_utf_8(command, model_copy, monkeypatch):
    _template(model_copy, "{% for message in messages %}{{ message.content }}{% endfor %}")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 \xff\n"), encoding="utf-8"))
    assert command("chat", model_copy, "--max-tokens", "2", "--device", "cpu").succeeded().err == ""
