"""The Typer application and the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Make a language model smaller and faster without making it stupid.",
)

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
    str | None, typer.Option("--keep", help="Share of the block parameters that may stay.", show_default="50%")
]
RemoteCode = Annotated[bool, typer.Option("--allow-remote-code", help="Let a checkpoint run its own Python code.")]
StageOption = Annotated[str, typer.Option("--until", help="Stop after this stage.")]
