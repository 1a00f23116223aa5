"""`darwinlm show`: figures and next steps of a run, and whether it is what its records claim; the demo's screen."""

import importlib.util
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.tiny.damage import edit_config, flip
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint
from tests.tiny.summaries import SUMMARIES, made, recovered, searched

from darwinlm.cli import demo
from darwinlm.runs.demo_questions import SHOWN, Answer, Answers
from darwinlm.runs.finished import read_summary
from darwinlm.runtime import shell
from darwinlm.runtime.artifact import write_json
from darwinlm.runtime.errors import install


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as far as its summary tells."""
    tree = searched()
    tree["allocation"][3].update(experts=4, dense_experts=8)
    write_json(tmp_path / "half" / "summary.json", made(tree).as_json())
    return tmp_path / "half"


def test_show_draws_every_block_and_says_what_next(command, run: Path) -> None:
    ended = command("show", run).succeeded()
    lines = ended.out.splitlines()
    for row in read_summary(run / "summary.json").allocation:
        (line,) = [line.rstrip() for line in lines if line.startswith(f"{row.block:<5} ")]
        assert f" {row.heads}/{row.dense_heads} " in line
        assert line.endswith(f" {row.width * (row.experts or 1)}/{row.dense_width * (row.dense_experts or 1)}")
    for word in ("perplexity", f"darwinlm chat {run}", f"darwinlm recover {run}", "hf upload OWNER/NAME"):
        assert word in ended.out
    assert json.loads(command("show", run, "--json").out) == json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize("name", SUMMARIES)
def test_show_takes_every_kind_of_summary(command, name: str, tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "summary.json", made(SUMMARIES[name]()).as_json())
    command("show", tmp_path / "run").succeeded()


def test_what_is_no_finished_run(command, tmp_path: Path, run: Path) -> None:
    command("show", tmp_path / "nowhere").refused("is not a run", "output folder of darwinlm prune")
    (tmp_path / "empty").mkdir()
    command("show", tmp_path / "empty").refused("is not a run", "output folder of darwinlm prune")
    begun = tmp_path / "begun"
    write_json(begun / "darwinlm.json", {"made_by": "darwinlm"})
    write_json(begun / "stages" / "text" / "manifest.json", {})
    command("show", begun).refused("isn't finished (done: text)", "rerun its command to resume")
    (run / "summary.json").write_text("{")
    command("show", run).refused("summary.json")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("params", 0, "the dense model has no parameters"),
        ("params", 10**400, "it holds a number of 401 digits"),
        ("kl", float("nan"), "is damaged (its figures aren't those of"),
    ],
)
def test_figures_that_no_run_has(command, run: Path, field: str, value: float, said: str) -> None:
    edit(run / "summary.json", lambda tree: tree["models"]["dense"]["metrics"].update({field: value}))
    command("show", run, *["--json"] * (field == "kl")).refused("summary.json", said)


def test_several_sizes_are_named(command, tmp_path: Path, run: Path) -> None:
    (tmp_path / "index.html").touch()
    shutil.copytree(run, tmp_path / "keep-75")
    command("show", tmp_path).refused("holds several sizes", str(tmp_path / "keep-75"), "index.html")
    write_json(tmp_path / "darwinlm.json", {"made_by": "darwinlm"})
    sizes = f"{tmp_path} holds several sizes: give one of {tmp_path / 'half'}, {tmp_path / 'keep-75'}"
    for words in (["chat"], ["export", "--out", tmp_path / "a.gguf"]):
        command(*words, tmp_path).refused(sizes)


def test_next_steps_run_with_what_is_installed(command, finished_llama, monkeypatch):
    shown = command("show", finished_llama).succeeded().out
    assert "first: pip install" not in shown
    assert "copying of lists can't be measured" in shown
    assert not re.search("^model *$", shown, flags=re.M), "a table without figures"
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "cyllama" else find(name, *more)
    )
    shown = command("show", finished_llama).succeeded().out
    assert f"llama.cpp (first: {install('gguf')})" in shown
    assert "benchmarks:" in shown


def test_printed_commands_take_any_name_of_a_run(command, finished_copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, words in (("-half", ["./-half", "./-half-recovered"]), ("my run's", ["my run's", "my run's-recovered"])):
        finished_copy = finished_copy.rename(tmp_path / name)
        shown = command("show", f"./{name}").succeeded().out
        (line,) = (line for line in shown.splitlines() if line.startswith("  darwinlm recover"))
        assert [word for word in shlex.split(line) if name in word] == words
        assert f"hf upload OWNER/NAME {shell.word(name)}/model" in shown


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


def test_an_imported_model(command, tmp_path, monkeypatch):
    out, published = tmp_path / "imported", plain_checkpoint(tmp_path / "published", "llama")
    edit_config(published, model_type="darwinlm")
    command("import", published, "--out", out).succeeded()
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
    command("export", model, "--quant", "f32", "--out", out).succeeded()
    command("show", "--verify", out).succeeded()
    out.rename(tmp_path / "other.gguf")
    (tmp_path / "small.gguf.export.json").rename(tmp_path / "other.gguf.export.json")
    command("show", "--verify", tmp_path / "other.gguf").succeeded()
    flip(tmp_path / "other.gguf")
    command("show", "--verify", tmp_path / "other.gguf").refused("the first is small.gguf: it was changed")


def test_one_screen_has_sizes_the_loss_answers_and_next_steps() -> None:
    tree = recovered()
    for model in tree["models"].values():
        model["metrics"]["agreement"] = 0.51
    rows = [
        Answer("Which river?", "The Rhine, " * 40, "The Elbe.", True, False),
        Answer(SHOWN[0], "Bonn.", "Rome.", False, True),
    ]
    said = io.StringIO()
    demo._screen(Console(file=said, width=200, highlight=False), made(tree), Answers(rows), Path("runs/demo"))
    lines = said.getvalue().splitlines()
    assert len(lines) <= 29
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    for part in (
        "sizes searched for 1 generation; then trained on 24,576 tokens",
        "parameters: ",
        "\n  speed       ",
        "1 of 2 simple questions answered right; the original answers 1",
        "KL ",
        "the same token is the most likely one at 51.0 % of the positions",
        " if all layers are cut alike",
        "The first question of each kind, right or wrong (all answers: runs/demo/stages/questions/answers.json)",
        f"{SHOWN[0]}\n  original    Bonn.  (wrong)\n  smaller     Rome.\n",
        "show all figures (page: report.html)",
        "darwinlm recover runs/demo --tokens 1M --text TEXT",  # the demo's own text is too short to train on
    ):
        assert part in text
    assert "Rhine" not in text, "only the questions that were chosen before any answer"
    assert "tokens/s" not in text, "no speeds: two models of this size differ by less than the runs"
    assert "perplexity" not in text
