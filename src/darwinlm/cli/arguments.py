"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from darwinlm.steps.budget.kinds import BUDGETS

F = TypeVar("F", bound=Callable[..., Any])


def with_budget(run: F) -> F:
    """Give a command an option for each kind of budget in place of its last argument, `**budget`."""
    whole = signature(run, eval_str=True)
    *others, last = whole.parameters.values()
    assert last.kind is Parameter.VAR_KEYWORD, last
    for kind in BUDGETS:
        bound = BUDGETS.find(kind)
        option = typer.Option(metavar=bound.metavar, help=bound.help, rich_help_panel="Budget (choose one)")
        others.append(Parameter(kind, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[str | None, option]))
    run.__signature__ = whole.replace(parameters=others)  # type: ignore[attr-defined]
    return run


def number(metavar: str, help: str, *, least: int = 1) -> Any:
    """An option that takes whole numbers from `least` on; `help` continues with them."""

    def check(value: int | None) -> int | None:
        if value is not None and value < least:
            raise typer.BadParameter(f"must be {least} or more, not {value}")
        return value

    return typer.Option(metavar=metavar, help=f"{help}, {least} or more.", callback=check)


Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Hub id, local folder, or GGUF file. A recipe can name it instead."),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", metavar="FOLDER", help="Output folder. Rerun with the same one to resume.")
]
RecipeFile = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="RECIPE", help="YAML file, or a bundled recipe: llama2-7b-2.7b-fast, recover-documents ..."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="A setting of recipe.default.yaml; repeatable."),
]
Text = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        metavar="SOURCE",
        help="Text file, folder, or hf:owner/name; repeatable. Without it, self: the model writes the text.",
    ),
]
Vocab = Annotated[
    str | None,
    typer.Option(
        "--vocab",
        metavar="SHARE|COUNT",
        help="Tokens to keep: 50% or 24k. Without it, all. The budget counts the smaller embedding.",
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="DURATION",
        help="Time limit of the run: 30m, 2h or 90s. It chooses quick, default or thorough of --preset."
        " Search and training end in time.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="quick: two fifths of the work; thorough: four times as much; paper: the paper's text, units "
        "and search, no refit.",
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="QUANTISATION",
        help="What will follow: gguf, q4_k_m, awq, gptq, w4a16, fp8 ... Widths are multiples of its groups.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="KIND",
        help="equal: the same sizes in all layers, for engines that need it; often loses more. auto follows --for.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="STAGE", help="Last stage to run, such as search; an unknown name lists them all."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:1.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="TYPE", help="auto, bfloat16, float16 or float32.")]
Suite = Annotated[
    str | None,
    typer.Option(
        "--suite",
        metavar="TASKS",
        help="Benchmarks: paper, quick, or tasks such as piqa,arc_challenge:25 (25 examples in the prompt).",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="FOLDER", help="Local data of the benchmarks: TASK/SPLIT.jsonl, or the same with .gz."
    ),
]
Limit = Annotated[int | None, number("ITEMS", "Items of each task (without it, all)")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing --out.")]
