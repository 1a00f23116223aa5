"""The Typer application, the declaration of commands, and shared options."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from darwinlm.runtime.version import VERSION

F = TypeVar("F", bound=Callable[..., object])

Context: TypeAlias = Any
"""Context of a command: that of click, or of the copy of click inside some releases of Typer."""
Parameter: TypeAlias = Any
"""Argument or option of a command, which is of click or of that copy too."""

SHRINK = "Make a model smaller"
LOOK = "Look at a model"
USE = "Use a model elsewhere"
AHEAD = "Before a run"

ORDER = (("prune", "recover", "demo"), ("show", "chat", "evaluate"), ("export", "import"), ("plan",))
"""Commands in the order of the help."""


class _Group(TyperGroup):
    """Lists commands in the order of `ORDER`."""

    def get_params(self, ctx: Context) -> list[Parameter]:
        return _readable(super().get_params(ctx))

    def list_commands(self, ctx: Context) -> list[str]:
        order = [name for panel in ORDER for name in panel]
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))


def _readable(parameters: list[Parameter]) -> list[Parameter]:
    """Options show what to write, flags and arguments nothing: Typer 0.29 would write types such as `<str>`."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        elif parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None
    return parameters


class _Command(TyperCommand):
    def get_params(self, ctx: Context) -> list[Parameter]:
        return _readable(super().get_params(ctx))

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        order: list[Parameter] = self.make_parser(ctx).parse_args(args=list(args))[2]  # the last of several would win
        for option in order:
            if order.count(option) > 1 and not (ctx.resilient_parsing or option.multiple or option.is_flag):
                raise typer.BadParameter("it is given more than once: give it once", ctx=ctx, param=option)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Context) -> object:
        for name, value in ctx.params.items():
            if isinstance(value, Path) or (name in ("model", "text", "teacher") and isinstance(value, str)):
                try:  # shells leave the ~ of --out=~/runs, and that of a user who doesn't exist
                    path = Path(value).expanduser()
                except RuntimeError as error:
                    raise typer.BadParameter(f"{value}: there is no such user; write the whole path") from error
                ctx.params[name] = path if isinstance(value, Path) else value
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        pieces = ["[OPTIONS]"]
        for argument in self.params:
            if argument.param_type_name == "argument":
                name = str(argument.metavar) + "..." * (argument.nargs < 0)
                pieces.append(name if argument.required else f"[{name}]")
        return pieces


def new_app() -> typer.Typer:
    """An application without commands."""
    return typer.Typer(
        cls=_Group,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["--help", "-h"]},
    )


app = new_app()


def command(panel: str, *examples: str, name: str | None = None, of: typer.Typer | None = None) -> Callable[[F], F]:
    """Declare a command of an application, without `of` of this one.

    Its help stands under the heading `panel` and ends with the examples. Without a `name`, the function's is taken.
    """
    lines = "\n\n".join(("[bold]Examples[/bold]", *(f"  [cyan]{escape(line)}[/cyan]" for line in examples)))
    return (of or app).command(name, cls=_Command, rich_help_panel=panel, epilog=lines if examples else None)


def _print_version(print_version: bool) -> None:
    if print_version:
        typer.echo(VERSION)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make a language model physically smaller and faster, and report what it lost.

    Start with [cyan]darwinlm prune MODEL --keep 75% --text TEXT --out runs/mine[/cyan].
    Then show the result with [cyan]darwinlm show runs/mine[/cyan],
    and talk to the smaller model with [cyan]darwinlm chat runs/mine[/cyan].
    """
