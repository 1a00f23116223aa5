"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_BUDGET = "Budget (choose one)"


def _bound(name: str, help: str, *, default: str | bool = False) -> Any:
    return typer.Option(name, help=help, show_default=default, rich_help_panel=_BUDGET)


Model = Annotated[str | None, typer.Argument(help="Hub id, local folder, or GGUF file.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Output folder. Rerun with the same folder to resume an interrupted run.")
]
RecipeFile = Annotated[str | None, typer.Option("--recipe", help="YAML recipe, or the name of a bundled one.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.FIELD=VALUE",
        help="Change one setting; repeatable. [cyan]darwinlm schema all[/cyan] lists them.",
    ),
]
Text = Annotated[
    str | None,
    typer.Option("--text", help="Local text file or folder, or hf:owner/name.", show_default="hf:.../fineweb-edu"),
]
Keep = Annotated[str | None, _bound("--keep", "Share of the block parameters to keep.", default="50%")]
Keeps = Annotated[
    str | None,
    _bound("--keep", "Share of the block parameters to keep. Several (75%,50%) give one model each.", default="50%"),
]
Params = Annotated[str | None, _bound("--params", "Parameters of the whole smaller model: 2.7B.")]
Bytes = Annotated[str | None, _bound("--bytes", "Weights and KV cache of the smaller model: 4GiB.")]
Speedup = Annotated[str | None, _bound("--speedup", "Speedup on this machine: 2x.")]
Latency = Annotated[str | None, _bound("--latency", "Time of one request on this machine: 30ms.")]
Vocab = Annotated[
    str | None,
    typer.Option(
        "--vocab",
        help="Tokens to keep, as a share or a number: 50% or 24k. The budget counts the smaller embedding.",
        show_default="all",
    ),
]
Time = Annotated[
    str | None,
    typer.Option("--time", help="Time limit of the whole run: 30m. Less text and fewer steps are used to keep it."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset", help="default, or paper: the paper's text, units and search, no refit.", show_default="default"
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="QUANTISATION",
        help="Quantisation that will follow: q4_k_m, awq, gptq, w4a16, fp8 ... Widths are multiples of its groups.",
    ),
]
RemoteCode = Annotated[
    bool, typer.Option("--allow-remote-code", help="Allow a checkpoint to run the Python code that it contains.")
]
Database = Annotated[
    Path | None, typer.Option("--database", help="Finished database of this model, instead of building one.")
]
Until = Annotated[str, typer.Option("--until", help="Stop after this stage.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, bfloat16, float16 or float32.")]
Suite = Annotated[
    str | None, typer.Option("--suite", help="paper, quick, or tasks such as piqa,arc_challenge:25 (25 shots).")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Local tasks: TASK/SPLIT.jsonl[.gz].")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Items per task.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out.")]
