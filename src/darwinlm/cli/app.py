"""The Typer application, how commands are declared, and the options that several of them share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from darwinlm import __version__
from darwinlm.cli.terminal import Verbosity, set_verbosity

F = TypeVar("F", bound=Callable[..., Any])

SHRINK = "Make a model smaller"
LOOK = "Look at a model"
USE = "Use a model elsewhere"
LEARN = "Learn about darwinlm"

ORDER = (
    ("prune", "recover", "database", "compare-methods", "demo"),
    ("show", "chat", "evaluate", "bench", "inspect", "scores"),
    ("export", "push", "import"),
    ("plan", "schema", "version"),
)
"""Commands as the help lists them."""


class _Group(TyperGroup):
    """Lists commands in the order in which people need them."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [name for panel in ORDER for name in panel]
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))


class _Command(TyperCommand):
    """A command that takes `-q` and `-v` beside its own options."""

    def get_params(self, ctx: Any) -> list[Any]:
        own = super().get_params(ctx)
        common: list[Any] = [
            _flag("-q", "--quiet", Verbosity.QUIET, "Print results and errors only."),
            _flag("-v", "--verbose", Verbosity.VERBOSE, "Print every step, and what the libraries say."),
        ]
        return [*own[:-1], *common, *own[-1:]]  # --help stays the last


def _flag(short: str, long: str, level: Verbosity, text: str) -> Any:
    def chosen(ctx: Any, param: Any, value: bool) -> None:  # noqa: FBT001
        del ctx, param
        if value:
            set_verbosity(level)

    return TyperOption(param_decls=[long, short], is_flag=True, expose_value=False, callback=chosen, help=text)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def command(panel: str, *examples: str, name: str | None = None) -> Callable[[F], F]:
    """Declare a command.

    Args:
        panel: heading under which the help lists it.
        examples: command lines for the end of its help.
        name: where it isn't the function's.
    """
    lines = "\n\n".join(("[bold]Examples[/bold]", *(f"  [cyan]{_escaped(line)}[/cyan]" for line in examples)))
    return app.command(name, cls=_Command, rich_help_panel=panel, epilog=lines if examples else None)


def _escaped(line: str) -> str:
    return line.replace("[", "\\[")


def _print_version(wanted: bool) -> None:  # noqa: FBT001
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make a language model smaller and faster, and keep what it knows.

    Start with [cyan]darwinlm prune MODEL --keep 50% --text TEXT --out runs/half[/cyan], then look at the result with
    [cyan]darwinlm show runs/half[/cyan] and talk to it with [cyan]darwinlm chat runs/half[/cyan].
    """
ModelArgument = Annotated[str | None, typer.Argument(help="Hub id, local folder, or GGUF file.", show_default=False)]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Output folder; the same one again resumes.")]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="YAML recipe, or the name of one that comes along.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.field=value, as often as needed; see `darwinlm schema`.", show_default=False),
]
TextOption = Annotated[
    str | None,
    typer.Option("--text", help="Local text file or folder, or hf:owner/name.", show_default="hf:.../fineweb-edu"),
]
KeepOption = Annotated[
    str | None,
    typer.Option("--keep", help="Share of the block parameters that may stay; 75%,50% makes both.", show_default="50%"),
]
ParamsOption = Annotated[
    str | None, typer.Option("--params", help="Parameters of the whole smaller model: 2.7B.", show_default=False)
]
BytesOption = Annotated[
    str | None, typer.Option("--bytes", help="Weights and KV cache of the smaller model: 4GiB.", show_default=False)
]
SpeedupOption = Annotated[
    str | None, typer.Option("--speedup", help="How many times as fast, on this machine: 2x.", show_default=False)
]
LatencyOption = Annotated[
    str | None, typer.Option("--latency", help="Time of a request, on this machine: 30ms.", show_default=False)
]
TimeOption = Annotated[
    str | None, typer.Option("--time", help="Time for the search; it ends with its best: 30m.", show_default=False)
]
PresetOption = Annotated[
    str | None, typer.Option("--preset", help="default, or paper: DarwinLM's own numbers.", show_default="default")
]
RemoteCode = Annotated[bool, typer.Option("--allow-remote-code", help="Let a checkpoint run its own Python code.")]
DatabaseOption = Annotated[
    Path | None,
    typer.Option("--database", help="A finished database of this model to search in.", show_default=False),
]
StageOption = Annotated[str, typer.Option("--until", help="Stop after this stage.")]
