"""`darwinlm demo`: the embedded model, pruned, described, and asked a question."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from rich.console import Console

from darwinlm.cli import arguments, terminal
from darwinlm.cli.app import SHRINK, command
from darwinlm.runtime.shell import word

if TYPE_CHECKING:
    from darwinlm.report.summary import Summary
    from darwinlm.runs.demo_questions import Answers

FILE_TYPE = "q4_k_m"
"""Type of a GGUF file whose size is shown: of about as many bits per weight as the Q4_1 in which the model comes."""


@command(SHRINK, "darwinlm demo")
def demo(out: arguments.Out = Path("runs/demo"), assignments: arguments.Set = None) -> None:
    """Prune SmolLM2-135M-Instruct, which comes from PyPI, and compare the answers of both models."""
    from darwinlm import pipeline
    from darwinlm.runs.demo_questions import SimpleQuestions, ask
    from darwinlm.runs.demo_recipe import demo_recipe
    from darwinlm.runs.pruning import open_size

    recipe = demo_recipe(tuple(assignments or ()))
    run = open_size(recipe, out, terminal.reporter(), until=pipeline.REPORT, begun=terminal.BEGUN)
    summary = pipeline.prune(run, further=(SimpleQuestions,))
    assert summary is not None, "the run goes to its report"
    _screen(terminal.console(), summary, ask(run), out)


def _screen(console: Console, summary: Summary, answers: Answers, out: Path) -> None:
    """Print sizes, what was lost, answers of both models, and next steps: one screen, the rest is for `show`."""
    from darwinlm.report import wording
    from darwinlm.report.write import PAGE
    from darwinlm.runs.demo_questions import FILE, SimpleQuestions
    from darwinlm.runtime.amounts import count, nats, percent, plural, size
    from darwinlm.steps.recover.recovery_figures import RecoveryFigures
    from darwinlm.steps.search.search_figures import SearchFigures
    from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures

    dense, small = summary.dense, summary.saved
    search, recovery = summary.of(SearchFigures), summary.of(RecoveryFigures)
    trained = "not trained" if recovery is None else f"then trained on {recovery.tokens:,} tokens"
    console.print(f"\n{wording.title(summary)}", style="bold")
    lines = []
    if search is not None:
        searched = (
            f"sizes searched for {plural(search.generations, 'generation')}" if search.chose else "all blocks kept"
        )
        lines.append(("done", f"{searched}; {trained}"))
    vocabulary = summary.of(VocabularyFigures)
    params = dense.params if vocabulary is None else vocabulary.dense_params
    smaller = percent(params - small.params, params)
    lines.append(("size", f"{count(params)} → {count(small.params)} parameters: {smaller} smaller"))
    if (file := summary.file) is not None and file.bytes is not None and FILE_TYPE in file.predicted:
        lines.append(
            ("file", f"{size(file.bytes)} as it came → {size(file.predicted[FILE_TYPE])} as {FILE_TYPE}, estimated")
        )
    faster, _, computed = wording.faster(summary).partition("; ")
    lines += [("speed", faster), *([("", computed)] if computed else [])]
    if vocabulary is not None:
        ((name, words),) = vocabulary.lines()
        kept, _, bits = words.partition("; ")
        lines += [(name, kept), ("", bits)]
    reference = "the original" if vocabulary is None else "the original with the smaller vocabulary"
    lines += [
        (
            "answers",
            f"{answers.smaller_right} of {len(answers.answers)} simple questions answered right; the original answers "
            f"{answers.original_right}",
        ),
        ("lost", f"KL {nats(small.kl)} nats per token to {reference}; 0 means the same predictions"),
        ("", f"the same token is the most likely one at {percent(small.agreement)} of the positions"),
        ("", f"on {wording.measured_on(summary)}"),
    ]
    if (uniform := summary.uniform) is not None:
        without = "a search" if recovery is None else "a search or training"
        lines.append(("", f"{nats(uniform.kl)} if all layers are cut alike, without {without}"))
    for name, value in lines:
        console.print(f"  {name:<11} {value}", soft_wrap=True)
    answered = out / "stages" / SimpleQuestions.name / FILE
    console.print(f"\nThe first question of each kind, right or wrong (all answers: {answered})", soft_wrap=True)
    for answer in answers.shown:
        console.print(f"\n{answer.question}", style="bold")
        for name, said, right in (
            ("original", answer.original, answer.original_right),
            ("smaller", answer.smaller, answer.smaller_right),
        ):
            line = shorten(" ".join(said.split()), 84, placeholder=" …")
            console.print(f"  {name:<11} {line}{'' if right else '  (wrong)'}", soft_wrap=True)
    quoted = word(out)
    steps = (
        (f"darwinlm chat {quoted}", "talk to the smaller model"),
        (f"darwinlm show {quoted}", f"show all figures (page: {PAGE})"),
        (
            f"darwinlm recover {quoted} --tokens 1M --text TEXT --out runs/recovered",
            "train it on your text (an hour)",
        ),
        ("darwinlm prune MODEL --keep 75% --text TEXT --out runs/mine", "prune your own model"),
    )
    width = max(len(command) for command, _ in steps)
    console.print()
    for line, wish in steps:
        console.print(f"  {line:<{width}}  {wish}", soft_wrap=True)
