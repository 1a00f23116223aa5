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
    best_effort: arguments.BestEffort = False,
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
        "best_effort": best_effort or None,
        "database": str(database) if database else None,
        "allow_remote_code": allow_remote_code or None,
    }
    recipes = load_recipes(recipe, assignments or (), options(model=model, **budget, **others))
    last = _last_stage(until)
    if len(recipes) > 1:
        _run_sweep(recipes, out, last)
    else:
        run_recipe(recipes[0], out, last, overwrite=overwrite)


def _last_stage(until: str | None) -> str:
    """The stage that --until names, or the last one. Raises RecipeError."""
    from darwinlm.pipeline import PRUNE
    from darwinlm.runtime.errors import RecipeError

    if until is None:
        return PRUNE.steps[-1]
    if until not in PRUNE.steps:
        raise RecipeError(f"--until {until}: there is no such stage; the stages are {', '.join(PRUNE.steps)}")
    return until


def _run_sweep(recipes: list[Any], out: Path, until: str) -> None:
    from darwinlm.report.sweep import HEADINGS, sweep_cells
    from darwinlm.runs.sweep import PAGE, SWEEP, prune_sweep
    from darwinlm.runtime import tables

    console = terminal.console()
    sweep = prune_sweep(recipes, out, until=until, reporter=terminal.reporter(), begun=terminal.BEGUN)
    if not sweep.rows:
        console.print(f"stopped after {until}; the folders in {out} hold the results")
        return
    console.print("size against loss")
    console.print(tables.terminal(HEADINGS, sweep_cells(sweep)))
    console.print(f"models  {out}/*/model\npage    {out / PAGE}\nsummary {out / SWEEP}.json")


def run_stages(recipe: Any, out: Path, until: str | None = None, *, overwrite: bool = False) -> Any:
    """Say what to expect and run the stages; returns the run."""
    from darwinlm.pipeline import open_run
    from darwinlm.planning.time_limit import TimeLimit
    from darwinlm.runs.prune import check_replaced
    from darwinlm.stages.report import REPORT
    from darwinlm.stages.text import TEXT

    check_replaced(recipe, out, overwrite=overwrite)
    run = open_run(recipe, out, terminal.reporter(), pace=TimeLimit.of(recipe, begun=terminal.BEGUN))
    until = until or REPORT.name
    if until == REPORT.name and not run.context.path(TEXT.name).exists():
        _expect(run)
    run.until(until)
    return run


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


def run_recipe(recipe: Any, out: Path, until: str | None = None, *, overwrite: bool = False) -> None:
    """Run the stages and print the result."""
    from darwinlm.report import wording
    from darwinlm.report.table import comparison_table, looking_back_rows
    from darwinlm.runtime import amounts, tables
    from darwinlm.stages.report import REPORT

    console = terminal.console()
    run = run_stages(recipe, out, until, overwrite=overwrite)
    if until not in (None, REPORT.name):
        console.print(f"stopped after {until}; {out / 'stages'} holds the result")
        return
    summary = run[REPORT]
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


def _expect(run: Any) -> None:
    """Print the planned time and memory, and parts that don't fit; progress lines begin with the planned time."""
    from darwinlm.needs.sizes import Sizes
    from darwinlm.planning.devices import device_here, present_load
    from darwinlm.planning.plan import make_plan
    from darwinlm.runtime import parallel
    from darwinlm.runtime.amounts import duration, size
    from darwinlm.runtime.errors import FamilyError
    from darwinlm.stages.latency import LATENCY
    from darwinlm.stages.model import SOURCE

    device = run.context.device
    if not parallel.is_main() or device.type not in ("cpu", "cuda"):
        return
    try:
        plan = make_plan(Sizes(run[SOURCE], run.recipe, parallel.size()), device_here(device))
    except FamilyError as error:
        terminal.say(f"no plan: {error}")
        return
    # With a time limit, the time follows from the limit.
    time = ""
    if run.recipe.time is None:
        load = present_load() if device.type == "cpu" else ""
        slow = f" ({load}: it takes longer)" if load else ""
        time = f"{duration(plan.seconds)} if nothing else runs{slow}, "
        run.context.reporter.expect({run.graph[need.name].title: need.seconds(plan.rates) for need in plan.needs})
    terminal.say(f"planned: {time}{size(max(need.device_bytes for need in plan.needs))} of memory")
    if run.recipe.budget.timed:
        table = sum(need.seconds(plan.rates) for need in plan.needs if need.name == LATENCY.name)
        terminal.say(f"at most {duration(table)} of it for the latency table, from which the sizes then follow")
    for problem in plan.problems:
        terminal.say(f"doesn't fit: {problem}")
