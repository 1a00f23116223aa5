"""`darwinlm show --verify`: a run is what its records claim, or it is said what isn't."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.tiny.damage import flip
from tests.tiny.pruned import pruned_checkpoint


def edit(path: Path, change: Callable[[Any], None]) -> None:
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


DAMAGES: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "weights": (
        lambda run: flip(run / "model" / "model.safetensors"),
        ("model/model.safetensors: it was changed after it was written: rerun the run's command",),
    ),
    "the modelling file": (
        lambda run: flip(run / "model" / "modeling_darwinlm.py"),
        ("model/modeling_darwinlm.py: it was changed",),
    ),
    "a file more": (
        lambda run: (run / "model" / ".env").write_text("x"),
        ("model/.env: it isn't part of the model: remove it",),
    ),
    "a stage": (lambda run: flip(run / "stages" / "search" / "result.json"), ("stage search", "is damaged")),
    "an unfinished stage": (
        lambda run: (run / "stages" / "refit" / "manifest.json").unlink(),
        ("stage refit: it isn't finished",),
    ),
    "another refit": (
        lambda run: edit(run / "stages" / "refit" / "manifest.json", lambda manifest: manifest["key"].update(more=1)),
        ("stage export: it follows another result of refit",),
    ),
    "no model": (lambda run: shutil.rmtree(run / "stages" / "export"), ("hasn't written it yet",)),
}


def test_a_finished_run(command, finished_llama):
    ended = command("show", "--verify", finished_llama).succeeded()
    assert "stage database: as recorded" in ended.out
    assert "model/model.safetensors: as recorded" in ended.out


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_recorded(command, finished_copy, damage):
    change, said = DAMAGES[damage]
    change(finished_copy)
    command("show", "--verify", finished_copy).refused(" checks failed; the first is ", *said)


def test_what_is_no_run(command, tmp_path):
    command("show", "--verify", tmp_path).refused("is neither a run nor an export")
    command("show", "--verify", tmp_path / "none").refused("is neither a run nor an export")


def test_an_export(command, finished_llama, tmp_path, monkeypatch):
    out = tmp_path / "exported"
    command("export", finished_llama, "--to", "vllm", "--out", out).succeeded()
    monkeypatch.chdir(out)
    command("show", "--verify", ".").succeeded()
    (out / "README.md").write_text("people edit the card")
    ended = command("show", "--verify", out).succeeded()
    assert "tokenizer.json: as recorded" in ended.out
    (out / "tokenizer.json").unlink()
    command("show", "--verify", out).refused("1 of ", "the first is tokenizer.json: it is missing: run the command")
    (out / "export.json").write_text("{}")
    command("show", "--verify", out).refused("export.json is damaged (it holds no hashes of files)")


def test_a_gguf_file(command, tmp_path):
    model, out = pruned_checkpoint(tmp_path / "model", "llama", {1: (2, 1, 32)}), tmp_path / "small.gguf"
    command("export", model, "--to", "gguf", "--quant", "f32", "--out", out).succeeded()
    command("show", "--verify", out).succeeded()
    out.rename(tmp_path / "other.gguf")
    (tmp_path / "small.gguf.export.json").rename(tmp_path / "other.gguf.export.json")
    command("show", "--verify", tmp_path / "other.gguf").succeeded()
    flip(tmp_path / "other.gguf")
    command("show", "--verify", tmp_path / "other.gguf").refused("the first is small.gguf: it was changed")
