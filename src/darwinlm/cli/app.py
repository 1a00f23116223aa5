"""The Typer application, the declaration of commands, and shared options."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from darwinlm import __version__
from darwinlm.cli.terminal import Verbosity, set_verbosity

F = TypeVar("F", bound=Callable[..., Any])

SHRINK = "Make a model smaller"
LOOK = "Look at a model"
USE = "Use a model elsewhere"
LEARN = "Learn more"
_BUDGET = "Budget (choose one)"

ORDER = (
    ("prune", "recover", "database", "compare", "demo"),
    ("show", "chat", "evaluate", "bench", "inspect", "scores", "verify"),
    ("export", "push", "import"),
    ("plan", "schema", "version"),
)
"""Commands in the order of the help."""


class _Group(TyperGroup):
    """Lists commands in the order of `ORDER`."""

    def list_commands(self, ctx: Any) -> list[str]:
        order = [name for panel in ORDER for name in panel]
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))


def _quiet(wanted: bool) -> None:
    if wanted:
        set_verbosity(Verbosity.QUIET)


def _verbose(wanted: bool) -> None:
    if wanted:
        set_verbosity(Verbosity.VERBOSE)


@lru_cache
def _common_options() -> list[Any]:
    """The options `-q` and `-v`, built by Typer from a function's arguments."""
    scratch = typer.Typer(add_completion=False)

    @scratch.command()
    def declared(
        quiet: Annotated[
            bool, typer.Option("--quiet", "-q", callback=_quiet, help="Print results and errors only.")
        ] = False,
        verbose: Annotated[
            bool, typer.Option("--verbose", "-v", callback=_verbose, help="Print every step and all warnings.")
        ] = False,
    ) -> None:
        """Declare the options."""

    options = typer.main.get_command(scratch).params
    for option in options:
        option.expose_value = False
    return list(options)


class _Command(TyperCommand):
    """A command with the additional options `-q` and `-v`."""

    def get_params(self, ctx: Any) -> list[Any]:
        *parameters, last = super().get_params(ctx)
        return [*parameters, *_common_options(), last]  # --help stays last


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def command(panel: str, *examples: str, name: str | None = None) -> Callable[[F], F]:
    """Declare a command.

    Its help stands under the heading `panel` and ends with the examples. Without a `name`, the function's is taken.
    """
    lines = "\n\n".join(("[bold]Examples[/bold]", *(f"  [cyan]{escape(line)}[/cyan]" for line in examples)))
    return app.command(name, cls=_Command, rich_help_panel=panel, epilog=lines if examples else None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make a language model smaller and faster while preserving its quality.

    Start with [cyan]darwinlm prune MODEL --keep 50% --text TEXT --out runs/half[/cyan], then look at the result with
    [cyan]darwinlm show runs/half[/cyan] and talk to it with [cyan]darwinlm chat runs/half[/cyan].
    """


def _bound(name: str, help: str, *, default: str | bool = False) -> Any:
    return typer.Option(name, help=help, show_default=default, rich_help_panel=_BUDGET)


ModelArgument = Annotated[str | None, typer.Argument(help="Hub id, local folder, or GGUF file.", show_default=False)]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", help="Output folder. Rerun with the same folder to resume an interrupted run.")
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="YAML recipe, or the name of a bundled one.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Change one setting; repeatable. [cyan]darwinlm schema[/cyan] lists them.",
        show_default=False,
    ),
]
TextOption = Annotated[
    str | None,
    typer.Option("--text", help="Local text file or folder, or hf:owner/name.", show_default="hf:.../fineweb-edu"),
]
KeepOption = Annotated[
    str | None,
    _bound("--keep", "Share of the block parameters to keep. Several (75%,50%) give one model each.", default="50%"),
]
ParamsOption = Annotated[str | None, _bound("--params", "Parameters of the whole smaller model: 2.7B.")]
BytesOption = Annotated[str | None, _bound("--bytes", "Weights and KV cache of the smaller model: 4GiB.")]
SpeedupOption = Annotated[str | None, _bound("--speedup", "Speedup on this machine: 2x.")]
LatencyOption = Annotated[str | None, _bound("--latency", "Time of one request on this machine: 30ms.")]
VocabOption = Annotated[
    str | None,
    typer.Option(
        "--vocab",
        help="Tokens to keep, as a share or a number: 50% or 24k. The budget counts the smaller embedding.",
        show_default="all",
    ),
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time", help="Time limit of the whole run: 30m. Text and steps are reduced to fit.", show_default=False
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", help="default, or paper: the paper's text, units and search, no refit.", show_default="default"
    ),
]
ForOption = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="QUANTISATION",
        help="Quantisation that will follow: q4_k_m, awq, gptq, w4a16, fp8 ... Widths are multiples of its groups.",
        show_default=False,
    ),
]
RemoteCode = Annotated[
    bool, typer.Option("--allow-remote-code", help="Allow a checkpoint to run the Python code that it contains.")
]
DatabaseOption = Annotated[
    Path | None,
    typer.Option("--database", help="Finished database of this model, instead of building one.", show_default=False),
]
StageOption = Annotated[str, typer.Option("--until", help="Stop after this stage.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
DtypeOption = Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")]
