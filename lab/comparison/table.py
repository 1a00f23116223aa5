"""A comparison as a table with remarks."""

from __future__ import annotations

from pathlib import Path

from darwinlm.evaluation import harness
from darwinlm.evaluation import score_tables as summary
from darwinlm.runtime.amounts import duration, size
from darwinlm.runtime.tables import Table
from lab.comparison.record import ComparedMethod, ComparisonRecord


def comparison_cells(compared: ComparisonRecord) -> Table:
    """The table from the record of `lab.comparison.compare`."""
    places = list(compared.texts)
    trains = any(row.training_tokens for row in compared.rows)
    headings = ["method", "block params", "kept, %", "weights", "minutes", *(["trained on, tokens"] if trains else [])]
    headings += [f"{figure}, {place}" for place in places for figure in ("perplexity", "KL")]
    tasks = compared.rows[0].tasks if compared.rows else []
    headings += [f"{score['title']}, %" for score in tasks] + (["average, %"] if len(tasks) > 1 else [])
    cells, remarks = [], []
    for row in compared.rows:
        line = [
            row.title,
            f"{row.block_params / 1e6:.1f} M",
            f"{100 * row.block_params / compared.rows[0].block_params:.2f}",
            size(row.bytes),
            _minutes(row),
        ]
        if trains:
            line.append(f"{row.training_tokens:,}" if row.training_tokens else "")
        for place in places:
            line += [f"{row.texts[place].perplexity:.4g}", f"{row.texts[place].kl:.4f}"]
        if tasks:
            scores = list(harness.from_json(Path("comparison.json"), row.tasks).values())
            line += [summary.with_error(score.value, score.stderr) for score in scores]
            if len(tasks) > 1:
                line.append(summary.with_error(*summary.average(scores)))
            remarks += [f"{row.title}: {note}" for note in summary.notes(scores)]
        cells.append(tuple(line))
    return Table(tuple(headings), cells, [*remarks, *_footing(compared)])


def _minutes(row: ComparedMethod) -> str:
    if row.seconds is None:
        return ""
    minutes = (row.seconds + (row.database_seconds or 0)) / 60
    return f"{'≥ ' if row.resumed else ''}{minutes:.1f}"


def _footing(compared: ComparisonRecord) -> list[str]:
    """Remarks about the common conditions, and about the resources of each row."""
    recipe, names = compared.recipe, [row.method for row in compared.rows]
    text, search, recovery = recipe["text"], recipe["search"], recipe["recovery"]
    fitness = max(each["tokens"] for each in search["rounds"])
    lines = [
        f"same for all rows: model, budget, and {text['calibration_tokens']:,} calibration and "
        f"{fitness:,} fitness tokens of {text['source']}; measured on other documents: "
        + "; ".join(f"{place}, {part.tokens:,} tokens of {part.source}" for place, part in compared.texts.items()),
        "minutes: the method with all of its steps, including the pruning database if it uses one"
        + ("; ≥: interrupted, only the last part was timed" if any(row.resumed for row in compared.rows) else ""),
    ]
    if search["minutes"] is not None:
        tries = next((row.record["tries"] for row in compared.rows if row.method == "random"), 0)
        random = f", and so are random tries ({tries} allocations)" if tries else ""
        lines.append(f"searches are limited to {duration(60 * search['minutes'])}{random}")
    else:
        lines.append("the searches had no time limit (search.minutes) and took different times: see minutes")
    if any(name.startswith("sheared") for name in names):
        tokens = next(row.record["tokens"] for row in compared.rows if row.method.startswith("sheared"))
        lines.append(f"sheared learns masks and weights on {tokens:,} tokens of the calibration text")
    if any(name.endswith("recovery") for name in names):
        source = recovery["text"] or text["source"]
        share = recovery["distillation"]
        weights = f"{share:g} x KL to the dense model, {1 - share:g} x cross-entropy"
        given = recovery["learning_rate"]
        rate = "by each model's weights and loss" if given is None else f"{given:g}"
        lines.append(
            f"recovery: {recovery['tokens']:,} tokens of {source}, in the same order in every row "
            f"({weights}, learning rate {rate})"
        )
    return lines
