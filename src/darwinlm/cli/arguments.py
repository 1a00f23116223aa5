"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from typer.models import OptionInfo

from darwinlm.runtime.signatures import spelled_out
from darwinlm.steps.budget.kinds import BUDGETS

F = TypeVar("F", bound=Callable[..., object])


def number(metavar: str, help: str, *, least: int = 1) -> OptionInfo:
    """An option that takes whole numbers of at least `least`, which are appended to `help`."""

    def check(value: int | None) -> int | None:
        if value is not None and value < least:
            raise typer.BadParameter(f"must be {least} or more, not {value}")
        return value

    option: OptionInfo = typer.Option(metavar=metavar, help=f"{help}, {least} or more.", callback=check)
    return option


Model = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="Hub id, local folder, or GGUF file. A recipe can name the model instead."),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="FOLDER", help="Output folder. Rerun the command with the same folder to resume."
    ),
]
RecipeFile = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="RECIPE", help="YAML file, or the name of a bundled recipe, such as llama2-7b-2.7b-fast."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.FIELD=VALUE", help="Any setting of recipe.default.yaml. Can be repeated."),
]
Text = Annotated[
    list[str] | None,
    typer.Option(
        "--text",
        metavar="SOURCE",
        help="Text file, folder, or hf:owner/name. Can be repeated. By default, the model writes the text itself "
        "(self).",
    ),
]
Answers = Annotated[
    str | None,
    typer.Option(
        "--answers",
        metavar="YES,NO",
        help="Two words with which a language model answers whether a text fits a query, such as yes,no: their "
        "probabilities are then kept.",
    ),
]
Vocab = Annotated[
    str | None,
    typer.Option(
        "--vocab",
        metavar="SHARE|COUNT|auto",
        help="Tokens of the vocabulary to keep: 50% or 24k. The default is all. The budget counts the smaller "
        "embedding. With auto, --text and the budget decide, which may be any but --keep.",
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="DURATION",
        help="Time limit of the run: 30m, 2h or 90s, without the time that other programs take. It chooses the preset "
        "quick, default or thorough, and ends the search and the training in time.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Amount of work: quick (two fifths of default), default, or thorough (four times default). paper: the "
        "paper's text, units and search, without a refit.",
    ),
]
For = Annotated[
    str | None,
    typer.Option(
        "--for",
        metavar="QUANTISATION",
        help="Quantisation that will follow, such as gguf, q4_k_m, awq, gptq, w4a16 or fp8. Widths become multiples of "
        "its groups.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="KIND",
        help="equal: the same sizes in all layers, for engines that need this; often loses more. unequal: a size for "
        "each layer. auto (the default): equal if the file of --for needs it, otherwise unequal. first: the "
        "first layers unchanged and none of the others, for rerankers, classifiers and embedders that are distilled "
        "afterwards.",
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        "--until", metavar="STAGE", help="Last stage to run, such as search. An unknown name lists all stages."
    ),
]
Track = Annotated[
    str | None,
    typer.Option(
        "--track",
        metavar="TRACKER",
        help="Send the figures of the run to a tracker: wandb, trackio, tensorboard or mlflow.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="Device to run on: auto, cpu, cuda or cuda:1.")]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="TYPE", help="Type in which to compute: auto, bfloat16, float16 or float32.")
]
Suite = Annotated[
    str | None,
    typer.Option(
        "--suite",
        metavar="TASKS",
        help="Benchmarks to run: paper, quick, or tasks such as piqa,arc_challenge:25 (25 examples in the prompt).",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", metavar="FOLDER", help="Local data of the benchmarks: TASK/SPLIT.jsonl or TASK/SPLIT.jsonl.gz."
    ),
]
Limit = Annotated[int | None, number("ITEMS", "Number of items of each task or file of questions (the default is all)")]
Measure = Annotated[
    list[str] | None,
    typer.Option(
        "--measure",
        metavar="NAMES",
        help="Score the model on items: benchmark tasks (sciq,piqa:5), a file of questions (answers.jsonl), or a "
        "Python function score(model, tokenizer) that returns a number for each item (check.py:score). "
        "Can be repeated.",
    ),
]
Within = Annotated[
    str | None,
    typer.Option(
        "--within",
        metavar="LOSS",
        help="Find the smallest model within a loss instead of a size: 2% of the original's score on every --measure, "
        "or '0.02 nats' of KL.",
    ),
]
RunCode = Annotated[
    bool,
    typer.Option(
        "--run-code",
        help="Let the tests of --measure run code that the model wrote. It runs on this machine with limits on time "
        "and memory, but without a sandbox.",
    ),
]
MeasureTime = Annotated[
    str,
    typer.Option(
        "--measure-time",
        metavar="DURATION",
        help="Time limit for a function of --measure to return, or to yield its next score: 10m or 1h.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")]


def _budget_options() -> dict[str, Any]:
    """An option for each kind of budget."""
    panel = "Budget (choose one)"
    kinds = {kind: BUDGETS.find(kind) for kind in BUDGETS}
    return {
        kind: Annotated[str | None, typer.Option(metavar=bound.metavar, help=bound.help, rich_help_panel=panel)]
        for kind, bound in kinds.items()
    }


RECIPE_OPTIONS: dict[str, Any] = {
    "text": Text,
    "preset": Preset,
    "time": Time,
    "vocab": Vocab,
    "layers": Layers,
    "ready_for": For,
    "answers": Answers,
}
"""Options that are settings of a recipe with a short name: all of `RecipeOptions` but the kinds of budget."""


def with_recipe_options(run: F) -> F:
    """Give a command all options of `RecipeOptions` in place of its last argument, `**given`."""
    return spelled_out({**RECIPE_OPTIONS, **_budget_options()}, after="recipe")(_evaluated(run))


def with_budget(run: F) -> F:
    """Give a command an option for each kind of budget in place of its last argument, `**budget`."""
    return spelled_out(_budget_options())(_evaluated(run))


def _evaluated(run: F) -> F:
    """A command whose annotations are types rather than their names, as Typer needs them; but for the last argument."""
    run.__annotations__.pop(list(signature(run).parameters)[-1], None)
    run.__signature__ = signature(run, eval_str=True)  # type: ignore[attr-defined]
    return run


def with_options_of(other: Callable[..., object], panel: str) -> Callable[[F], F]:
    """Let a command accept the options of another that it doesn't have, and ignore them. `panel` heads them."""

    def accept(run: F) -> F:
        own, others = signature(run), signature(other).parameters
        ignored = {name: parameter for name, parameter in others.items() if name not in own.parameters}

        @wraps(run)
        def without(**given: object) -> object:
            return run(**{name: value for name, value in given.items() if name not in ignored})

        added = [
            parameter.replace(annotation=_in_panel(parameter.annotation, panel), kind=parameter.KEYWORD_ONLY)
            for parameter in ignored.values()
        ]
        without.__signature__ = own.replace(parameters=[*own.parameters.values(), *added])  # type: ignore[attr-defined]
        return without  # type: ignore[return-value]

    return accept


def _in_panel(annotation: Any, panel: str) -> Any:
    """An option under another heading of the help."""
    type_, option = get_args(annotation)
    placed = copy(option)
    placed.rich_help_panel = panel
    return Annotated[type_, placed]
