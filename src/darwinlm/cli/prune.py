"""`darwinlm prune`: the whole pipeline."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import SHRINK, command


@command(
    SHRINK,
    "darwinlm prune HuggingFaceTB/SmolLM2-135M-Instruct --keep 50% --out runs/half",
    "darwinlm prune MODEL --params 2.7B --text TEXT --out runs/small",
    "darwinlm prune MODEL --keep 75%,50%,35% --text TEXT --out runs/sizes",
    "darwinlm prune MODEL --params 80M --vocab 50% --text TEXT --out runs/vocab",
    "darwinlm prune MODEL --file 95MB --for q4_k_m --text TEXT --out runs/file",
    "darwinlm prune MODEL --speedup 2x --time 30m --text TEXT --out runs/fast",
)
@arguments.with_budget
def prune(
    model: arguments.Model = None,
    out: arguments.Out = Path("runs/pruned"),
    vocab: arguments.Vocab = None,
    time: arguments.Time = None,
    preset: arguments.Preset = None,
    ready_for: arguments.For = None,
    layers: arguments.Layers = None,
    text: arguments.Text = None,
    recipe: arguments.RecipeFile = None,
    assignments: arguments.Set = None,
    allow_remote_code: arguments.RemoteCode = False,
    until: arguments.Until = None,
    database: arguments.Database = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a finished run of another model or size in the folder.")
    ] = False,
    **budget: Any,
) -> None:
    """Prune a model to a budget, or to several (75%,50%), and report what was lost.

    Rerun the same command to resume.
    """
    from darwinlm.recipe import load_recipes, options

    others: dict[str, Any] = {"vocab": vocab, "time": time, "preset": preset, "text": text, "ready_for": ready_for}
    others |= {
        "layers": layers,
        "database": str(database) if database else None,
    }
    recipes = load_recipes(recipe, assignments or (), options(model=model, **budget, **others))
    from darwinlm.runs.prune import prune as run  # with PyTorch, which takes seconds
    from darwinlm.runs.sweep import prune_sweep
    from darwinlm.stages.report import REPORT

    how: dict[str, Any] = {"until": until or REPORT.name, "overwrite": overwrite, "begun": terminal.BEGUN}
    how |= {"allow_remote_code": allow_remote_code, "reporter": terminal.reporter()}
    console = terminal.console()
    if len(recipes) > 1:
        sweep = prune_sweep(recipes, out, **how)
    else:
        result = run(recipe=recipes[0], out=out, **how)
    if how["until"] != REPORT.name:
        console.print(f"stopped after {until}; the folders in {out} hold the results", soft_wrap=True)
    elif len(recipes) > 1:
        _show_sweep(console, sweep, out)
    else:
        _show(console, result.summary, out)


def _show_sweep(console: Any, sweep: Any, out: Path) -> None:
    """Print the result of a sweep."""
    from darwinlm.report.sweep import HEADINGS, sweep_cells
    from darwinlm.runs.sweep import PAGE, SWEEP
    from darwinlm.runtime import tables

    console.print("size against loss")
    console.print(tables.terminal(HEADINGS, sweep_cells(sweep)))
    console.print(f"models  {out}/*/model\npage    {out / PAGE}\nsummary {out / SWEEP}.json")


def show_figures(console: Any, summary: Any) -> None:
    """Print sizes of GGUF files, how good a draft the saved model is, and figures on chats."""
    from darwinlm.report import wording
    from darwinlm.report.table import chat_rows, file_rows
    from darwinlm.runtime import tables

    if (files := file_rows(summary)) is not None:
        console.print("", tables.terminal(files[0], files[1], bold=1), *files[2])
    for said in filter(None, (wording.as_draft(summary), wording.bounded_file(summary))):
        console.print(said, soft_wrap=True)
    for headings, rows, remarks in chat_rows(summary):
        console.print("", tables.terminal(headings, rows, bold=len(rows) - 1))
        console.print("; ".join(remarks), style="dim")


def _show(console: Any, summary: Any, out: Path) -> None:
    """Print the result of a run."""
    from darwinlm.report import wording
    from darwinlm.report.table import comparison_table, looking_back_rows
    from darwinlm.runtime import amounts, tables

    console.print(comparison_table(summary))
    looking_back = looking_back_rows(summary, losses=False)
    if looking_back is not None:
        headings, rows, remarks = looking_back
        console.print("", tables.terminal(headings, rows, bold=len(rows) - 1), *remarks)
    show_figures(console, summary)
    if summary.prompts and summary.models["dense"].continuations:
        console.print(f"\n{summary.prompts[0]}{'' if summary.chat else ' …'}", style="bold")
        for key in ("dense", summary.saved_key):
            text = wording.collapsed(summary.models[key].continuations[0])
            console.print(f"  {wording.model_name(key, summary)}: {text!r}")
    if summary.time is not None:
        console.print(f"\n{wording.time_limit(summary.time)}")
    budget = summary.budget
    assert budget is not None
    quoted = shlex.quote(str(out))
    limit = "" if budget.kind == "keep" else f" of {amounts.amount(budget.upper, budget.unit)}"
    console.print(
        f"\n{budget.block_params:,} of {budget.dense_block_params:,} block parameters kept "
        f"({budget.block_params / budget.dense_block_params:.2%}; {budget.unused:.2%} of the budget{limit} "
        "unused)\n"
        f"model   {out / 'model'}\nreport  {out / 'report.html'}\nsummary {out / 'summary.json'}\n\n"
        f"darwinlm show {quoted}    the kept part of every block, and next steps\n"
        f"darwinlm chat {quoted}    talk to the smaller model",
        soft_wrap=True,
    )
