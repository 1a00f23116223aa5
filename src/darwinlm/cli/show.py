"""`darwinlm show`: a finished run in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import LOOK, command
from darwinlm.runtime import tables
from darwinlm.runtime.errors import ArtifactError

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

    from darwinlm.report.summary import Summary

BAR = 16
"""Characters of a bar."""


@command(LOOK, "darwinlm show runs/half", "darwinlm show runs/half --json", "darwinlm show --verify runs/half")
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of prune or recover.")],
    as_json: arguments.Json = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Compare all files of a run, an export or a GGUF file with their recorded hashes instead.",
        ),
    ] = False,
) -> None:
    """Show what is kept of every block, what was lost, and next steps."""
    from darwinlm.runs.finished import read_summary, summary_of
    from darwinlm.runtime.artifact import damaged

    if verify:
        _verify(terminal.console(), run)
        return
    summary = read_summary(path := summary_of(run))
    try:
        if as_json:
            terminal.print_json(summary.as_json())
        else:
            _show(terminal.console(), run, summary)
    except (ArithmeticError, LookupError, ValueError) as error:
        raise damaged(path, f"its figures aren't those of a run: {error}") from error


def _verify(console: Console, path: Path) -> None:
    """Print the result of each check. Raises ArtifactError if one fails."""
    from darwinlm.runs.verify import verify

    findings = verify(path)
    for item, problem in findings:
        console.print(f"{item}: {problem or 'as recorded'}", soft_wrap=True)
    failed = [f"{item}: {problem}" for item, problem in findings if problem is not None]
    if failed:
        raise ArtifactError(f"{path}: {len(failed)} of {len(findings)} checks failed; the first is {failed[0]}")
    console.print(f"{path}: all checks passed ({len(findings)})", soft_wrap=True)


def _show(console: Console, run: Path, summary: Summary) -> None:
    from darwinlm.report import usage, wording
    from darwinlm.report.comparison import comparison

    console.print(Text(wording.title(summary), style="bold"))
    for name, words in wording.told(summary):
        console.print(f"{name:<6} {words}", soft_wrap=True)
    console.print()
    plain = not (console.encoding or "").startswith("utf")
    console.print(_blocks(summary, plain=plain), "")
    _show_table(console, comparison(summary))
    _show_figures(console, summary)
    console.print()
    stem = run if run.name else Path("..") / run.resolve().name  # the current folder "." has no name
    for wish, do in usage.next_steps(summary, str(run), str(stem), summary.model, on_this_machine=True):
        console.print(f"{wish}:", style="dim")
        console.print(f"  {do}", soft_wrap=True)


def _show_figures(console: Console, summary: Summary) -> None:
    """Print further measurements of the steps, sizes of GGUF files, and an answer."""
    from darwinlm.report.comparison import file_table, passages

    for passage in passages(summary):
        console.print()
        if passage.text:
            console.print(passage.text, soft_wrap=True)
        for table in passage.tables:
            _show_table(console, table)
    if (files := file_table(summary)) is not None:
        console.print()
        _show_table(console, files)
    if summary.prompts and summary.dense.continuations:
        console.print(f"\n{summary.prompts[0]}{'' if summary.chat else ' …'}", style="bold")
        for key in (next(iter(summary.models)), summary.saved_key):
            for text in summary.models[key].continuations[:1]:
                console.print(f"  {summary.name(key)}: {text.rstrip()!r}")


def _show_table(console: Console, table: tables.Table) -> None:
    console.print(tables.terminal(table))
    for remark in table.remarks:
        console.print(remark, style="dim", soft_wrap=True)


def _blocks(summary: Summary, *, plain: bool) -> TerminalTable:
    """A row for each block with the kept parts of its attention and MLP; `plain` draws with ASCII characters."""
    marks = "#." if plain else "█░"
    rows = [
        (str(row.block), _kept(row.heads, row.dense_heads, marks), _kept(row.channels, row.dense_channels, marks))
        for row in summary.allocation
    ]
    return tables.terminal(tables.Table(("block", "query heads", "MLP channels"), rows))


def _kept(part: int, total: int, marks: str) -> str:
    filled = min(max(round(BAR * part / total), 1), BAR) if part and total else 0
    return f"{marks[0] * filled}{marks[1] * (BAR - filled)} {f'{part}/{total}':>11}"
