"""The command `darwinlm`: one thin command per stage, and prune, demo and schema.

Errors that input can cause end with one message and status 2; an interrupt with 130 and how to go on.
"""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from darwinlm import __version__
from darwinlm.errors import DarwinLMError

INTERRUPTED = 130
# Typer brings click's exceptions under its own name in some releases and under click's in others.
UsageError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a language model smaller and faster without making it stupid.",
)

ModelArgument = Annotated[str | None, typer.Argument(help="Hub id, local folder, or GGUF file.", show_default=False)]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Output folder; the same one again resumes.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="YAML recipe.", show_default=False)]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.field=value, as often as needed; see `darwinlm schema`.", show_default=False),
]
TextOption = Annotated[
    str | None,
    typer.Option("--text", help="Local text file or folder, or hf:owner/name.", show_default="hf:.../fineweb-edu"),
]
KeepOption = Annotated[
    str | None, typer.Option("--keep", help="Share of the block parameters that may stay.", show_default="50%")
]
RemoteCode = Annotated[bool, typer.Option("--allow-remote-code", help="Let a checkpoint run its own Python code.")]
StageOption = Annotated[str, typer.Option("--until", help="Stop after this stage.")]


@app.command()
def prune(
    model: ModelArgument = None,
    out: OutOption = Path("runs/pruned"),
    keep: KeepOption = None,
    text: TextOption = None,
    recipe: RecipeOption = None,
    assignments: SetOption = None,
    allow_remote_code: RemoteCode = False,
    until: StageOption = "report",
) -> None:
    """Make a model smaller: database, search, stitch, refit, evaluation, export and report."""
    from darwinlm.errors import RecipeError
    from darwinlm.pipeline import STAGES
    from darwinlm.recipe import load_recipe

    if until not in STAGES:
        raise RecipeError(f"--until {until}: there is no such stage; the stages are {', '.join(STAGES)}")
    overrides: dict[str, Any] = {
        "model": model,
        "budget.keep": keep,
        "text.source": text,
        "allow_remote_code": allow_remote_code or None,
    }
    _run(load_recipe(recipe, assignments or (), overrides), out, until)


@app.command()
def demo(out: OutOption = Path("runs/demo"), assignments: SetOption = None) -> None:
    """Prune the embedded SmolLM2-135M-Instruct to half of its blocks and compare."""
    from darwinlm.demo import demo_recipe

    _run(demo_recipe(tuple(assignments or ())), out, "report")


@app.command()
def schema() -> None:
    """Print every field of the recipe with its default and meaning."""
    from darwinlm.recipe import describe_fields

    table = Table("field", "default", "meaning", title="recipe")
    for row in describe_fields():
        table.add_row(*row)
    Console().print(table)


@app.command()
def version() -> None:
    """Print the version."""
    Console().print(__version__, highlight=False)


def _run(recipe: Any, out: Path, until: str) -> None:
    from darwinlm.console import Reporter
    from darwinlm.pipeline import run_stages
    from darwinlm.report.table import comparison_table
    from darwinlm.run import Run

    console = Console()
    run = Run(recipe, out, Reporter(console))
    found = run_stages(run, until)
    if until != "report":
        console.print(f"stopped after {until}; {out / 'stages'} holds the result", highlight=False)
        return
    console.print(comparison_table(found))
    for number, prompt in enumerate(found["prompts"]):
        console.print(f"\n[bold]{prompt!r}[/bold] goes on")
        for name, model in found["models"].items():
            console.print(f"  {name}: {model['continuations'][number]!r}", highlight=False, markup=False)
    budget = found["budget"]
    console.print(
        f"\n{budget['block_params']:,} of {budget['dense_block_params']:,} block parameters kept "
        f"({budget['block_params'] / budget['dense_block_params']:.2%}; {budget['unused']:.2%} of the budget unused)\n"
        f"model   {out / 'model'}\nreport  {out / 'report.html'}\nsummary {out / 'summary.json'}",
        highlight=False,
    )


def main() -> None:
    """Entry point: run a command and turn errors into messages and exit codes."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # its bars would tear ours
    warnings.filterwarnings("ignore")
    errors = Console(stderr=True)
    try:
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        code = app(standalone_mode=False)
    except DarwinLMError as error:
        _refuse(errors, str(error))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except typer.Exit as stop:
        code = stop.exit_code
    except UsageError as error:
        _refuse(errors, error.format_message() or "say what to do; see darwinlm --help")  # type: ignore[attr-defined]
    if code == INTERRUPTED:
        command = shlex.join(["darwinlm", *sys.argv[1:]])
        errors.print(
            f"interrupted; finished work is kept. Go on with: {command}", highlight=False, markup=False, soft_wrap=True
        )
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(errors: Console, message: str) -> NoReturn:
    errors.print(f"error: {message}", highlight=False, markup=False, style="red", soft_wrap=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
