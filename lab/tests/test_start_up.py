"""The command of the lab helps as that of the core does."""

import re
import shlex
import signal

import pytest
import typer

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
