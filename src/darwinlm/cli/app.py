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
