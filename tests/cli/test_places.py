"""No command writes over what it reads, by whatever name the place is given."""

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets
from tests.tiny.process import python

from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.places import check_output


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.blake2b(path.read_bytes()).hexdigest() for path in files}


PRUNE, TEXT = "--keep 60% --text text.txt", "--text text.txt"
EVALUATE = f"evaluate run/model {TEXT} --tokens 64 --sequence-length 32"
WRITERS = {
    "prune": f"prune run/model {PRUNE} --out run",
    "prune by a link": f"prune link {PRUNE} --out run",
    "prune to a link": f"prune run/model {PRUNE} --out of-run",
    "a sweep": f"prune run/model --keep 80%,60% {TEXT} --out run",
    "its text": "prune model --keep 60% --text run/stages/text/t.txt --out run",
    "a field of its text": "prune model --keep 60% --text run/t.jsonl#body --out run",
    "into its text": "prune model --keep 60% --text texts --out texts/run",
    "recover": f"recover run --tokens 512 {TEXT} --out run",
    "recover its model": "recover run/model --teacher model --tokens 512 --out run",
    "export": "export run --out run --overwrite",
    "export of its model": "export run/model --out run/model --overwrite",
    "import": "import model --out model --overwrite",
    "evaluate": f"{EVALUATE} --out text.txt",
}
"""Command lines; those that run the pipeline get the tiny settings too."""


@pytest.mark.parametrize("name", WRITERS)
def test_a_command_does_not_write_over_its_inputs(
    command, finished_copy, model_copy, tiny_text_file, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    finished_copy.rename("run")
    Path("link").symlink_to("run/model")
    Path("of-run").symlink_to("run")
    Path("texts").mkdir()
    for path in ("text.txt", "texts/a.txt", "run/stages/text/t.txt"):
        shutil.copy(tiny_text_file, path)
    Path("run/t.jsonl").write_text('{"body": "words"}\n')
    before = content(tmp_path)
    words = WRITERS[name].split()
    more = sets(SETTINGS) if words[0] == "prune" else []
    command(*words, *more).refused("which this command reads: choose another place")
    assert content(tmp_path) == before


@pytest.mark.parametrize("words", ["export model --unchecked", f"evaluate model {TEXT} --tokens 64", "prune model"])
def test_a_pipe_is_not_replaced(command, model_copy, tiny_text_file, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_text_file, "text.txt")
    os.mkfifo("pipe")
    command(*words.split(), "--out", "pipe").refused("--out pipe is a pipe or a device, which would be replaced")
    assert Path("pipe").is_fifo()


def test_a_device_is_not_replaced():
    with pytest.raises(ArtifactError, match="is a pipe or a device"):
        check_output(Path("/dev/stdout"), ())


def test_what_lies_beside_is_written(command, finished_copy, tiny_text_file, monkeypatch):
    monkeypatch.chdir(finished_copy)
    for _ in range(2):
        words = ("--text", tiny_text_file, "--tokens", 64, "--sequence-length", 32)
        files = ("--out", "model/scores.json")
        command("evaluate", "model", *words, *files).succeeded()
    for path in ("summary.json", "model/config.json"):
        command("export", ".", "--out", path, "--overwrite").refused("is not a GGUF file")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
@pytest.mark.parametrize("place", ["model", "text", "a text in a folder", "out"])
def test_names_that_are_not_utf_8(command, prune, model_copy, tiny_text_file, tmp_path, place):
    odd = os.fsdecode(bytes(tmp_path) + b"/\xff")
    given: dict[str, Any] = {"model": model_copy, "text": tiny_text_file, "out": tmp_path / "out"}
    if place == "a text in a folder":
        (tmp_path / "texts").mkdir()
        Path(os.fsdecode(bytes(tmp_path) + b"/texts/\xff.txt")).write_text("words")
        given["text"] = tmp_path / "texts"
    else:
        given[place] = odd if place != "text" else f"{odd}.txt"
        if place != "out":
            Path(model_copy if place == "model" else shutil.copy(tiny_text_file, tmp_path)).rename(given[place])
    prune("--until", "text", **given).refused("name", "isn't UTF-8", "ename it")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["model", "text.source", "recovery.text"])
def test_names_with_a_zero_byte(command, model_copy, tiny_text_file, tmp_path, place):
    section, _, field = place.partition(".")
    named = '"a\\0b"'
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{section}: {f'{{{field}: {named}}}' if field else named}\n", encoding="utf-8")
    model = () if place == "model" else (model_copy,)
    text = () if place == "text.source" else ("--text", tiny_text_file)
    line = ("prune", *model, "--recipe", recipe, *text, "--out", tmp_path / "out")
    command(*line).refused("no name can hold a zero byte: correct it")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
@pytest.mark.parametrize("place", ["text", "a text in a folder", "recipe"])
def test_names_in_utf_8_where_python_expects_none(model_copy, tiny_text_file, tmp_path, place):
    (tmp_path / "texts").mkdir()
    text = Path(shutil.copy(tiny_text_file, tmp_path / "texts" / "Grüße.txt"))
    (tmp_path / "recipe.yaml").write_text(f"text: {{source: {text}}}", encoding="utf-8")
    given = {
        "text": ["--text", text],
        "a text in a folder": ["--text", text.parent],
        "recipe": ["--recipe", tmp_path / "recipe.yaml"],
    }
    words = ["-m", "darwinlm", "prune", model_copy, "--out", tmp_path / "out", *sets(SETTINGS), *given[place]]
    ended = python(*words, status=2, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "Python handles names of files as ascii here, which has no such letters: set PYTHONUTF8=1" in ended.stderr
    assert [line[:7] for line in ended.stderr.splitlines()] == ["error: "]
