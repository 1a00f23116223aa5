"""`darwinlm chat`: talk to a model, optionally side by side with another one."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LOOK, command
from darwinlm.runtime.errors import DataError

if TYPE_CHECKING:
    from darwinlm.evaluation.conversation import Conversation

HELP = "/reset starts a new conversation, /exit or Ctrl-D ends the command, Ctrl-C stops an answer"


@command(
    LOOK,
    "darwinlm chat runs/half",
    "darwinlm chat runs/half --against MODEL",
    "echo 'What is the capital of France?' | darwinlm chat runs/half --temperature 0",
)
def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Folder, finished run, hub id or GGUF file.")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Second model, which answers the same questions.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="System message, for models that take one.")
    ] = None,
    max_tokens: Annotated[int, arguments.number("TOKENS", "Largest number of tokens in an answer")] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            help="Temperature of the sampling, from 0 to below 100; 0 takes the most likely token. The default is the "
            "model's own.",
        ),
    ] = None,
    repetition_penalty: Annotated[
        float,
        typer.Option(
            metavar="NUMBER",
            help="Above 1, such as 1.1, tokens that are in the conversation become less likely. The default, 1, "
            "changes nothing.",
        ),
    ] = 1.0,
    seed: Annotated[int, arguments.number("NUMBER", "Seed of the sampling", least=0)] = 0,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = "auto",
) -> None:
    """Talk to a model.

    Answers appear as they are written. Every line of piped input is a question, and all of them are one conversation.
    """
    from darwinlm.evaluation.conversation import AnswerSettings, Conversation
    from darwinlm.formats.opened import open_model

    settings = AnswerSettings(max_tokens, temperature, seed, system, repetition_penalty)
    console, typed, talks = terminal.console(), sys.stdin.isatty(), {}
    for source in (model,) if against is None else (model, against):
        opened = open_model(source, dtype=dtype, device=device)
        talks[source] = talk = Conversation(opened, settings)
        if not talk.has_template:
            terminal.say(f"{source} has no chat template: it continues your text")
    if typed:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # it stops an answer, as often as one likes
        terminal.say(HELP)
    for text in _questions(console):
        if text == "/reset":
            for talk in talks.values():
                talk.reset()
        else:
            try:
                _answer(console, talks, text)
            except (DataError, KeyboardInterrupt) as error:  # after it, the next question can follow
                if not typed:
                    raise
                refused = isinstance(error, DataError)
                console.print(str(error) if refused else "\n(stopped)", style="red" if refused else "dim")


def _questions(console: Console) -> Iterator[str]:
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if line.strip() == "/exit":
                return
            if line.strip():
                yield line.strip()
        return
    while True:
        try:
            text = console.input("[bold cyan]>[/bold cyan] ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if text == "/exit":
            return
        if text.startswith("/") and text != "/reset":
            console.print(HELP, style="dim")
        elif text:
            yield text


def _answer(console: Console, talks: Mapping[str, Conversation], text: str) -> None:
    def write(piece: str) -> None:
        console.print(Text(piece), end="", soft_wrap=True)  # the terminal wraps it
        console.file.flush()

    for name, talk in talks.items():
        if len(talks) > 1:
            console.print(f"[{name}]", style="bold")
        talk.answer(text, write)
        console.print()
