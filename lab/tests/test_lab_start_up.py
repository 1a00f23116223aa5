"""The commands of the lab help as those of the core do, and write over nothing that they read."""

import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import typer
from tests.cli.test_places import PRUNE, TEXT, content
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets

from lab.__main__ import app
from lab.comparison.entries import OURS
from lab.comparison.methods import BASELINES

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_takes(name: str) -> None:
    (line,) = re.findall(r"\[cyan\](.*?)\[/cyan\]", COMMANDS[name].epilog)
    words = shlex.split(line)
    assert words[:4] == ["python", "-m", "lab", name]
    COMMANDS[name].make_context(name, words[4:], resilient_parsing=False)


def test_help_names_the_methods() -> None:
    methods = next(option for option in COMMANDS["compare"].params if option.name == "methods")
    assert {*BASELINES, OURS} <= set(re.findall(r"\w+", methods.help))


def test_an_error_is_one_line(command) -> None:
    command("compare", "--kep", "50%").refused("--kep")


def test_an_interrupt_says_how_to_go_on(command, tiny_llama, monkeypatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("lab.comparison.compare.compare_methods", interrupted)
    assert "Resume with: python -m lab compare " in command("compare", tiny_llama, "--text", "text.txt").err


WRITERS = {
    "compare": f"compare run/model {PRUNE} --out run",
    "another text of compare": f"compare model {PRUNE} --domain a=run/stages/text/t.txt --out run",
    "tradeoff": f"tradeoff run/model {TEXT} --held-out text.txt --out run",
    "the other text of tradeoff": f"tradeoff model {TEXT} --held-out run/t.jsonl#body --out run",
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_command_does_not_write_over_its_inputs(
    command, finished_llama, model_copy, tiny_text_file, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_llama, "run")
    for path in ("text.txt", "run/stages/text/t.txt"):
        shutil.copy(tiny_text_file, path)
    Path("run/t.jsonl").write_text('{"body": "words"}\n')
    before = content(tmp_path)
    command(*WRITERS[name].split(), *sets(SETTINGS)).refused("which this command reads: choose another place")
    assert content(tmp_path) == before
