"""Models compared, and what steps measured of them: the same tables for the page, the terminal and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from darwinlm.report.summary import Summary
from darwinlm.runtime import amounts
from darwinlm.runtime.figures import Passage
from darwinlm.runtime.tables import Table
from darwinlm.steps.evaluate.metric import columns, directions
from darwinlm.steps.evaluate.metrics import reference, same_speed, speed_beside, speed_heading
from darwinlm.steps.evaluate.model_figures import DENSE, ModelFigures, copying_passage, reading_passage


def model_table(models: Mapping[str, ModelFigures], *, final: bool = False) -> Table:
    """All metrics of models by their names for people, the dense one first; `final` stresses the last one.

    A figure that wasn't measured is a dash; shares and factors are of the dense model.
    """
    metrics = columns(model.metrics for model in models.values())
    dense, *_ = models.values()
    rows = [
        (
            name,
            *(
                metric.cell(
                    model.metrics.get(metric.name),
                    None if model is dense else reference(metric, model.metrics, dense.metrics),
                )
                for metric in metrics
            ),
        )
        for name, model in models.items()
    ]
    sentence = directions(metrics)
    return Table(("model", *(metric.heading for metric in metrics)), rows, [sentence] if sentence else [], final)


SAME_SPEED = "A speed without a factor doesn't differ from the dense model's by more than the noise of the measurement."


def comparison(summary: Summary) -> Table:
    """A row for each measured model, the dense one first and the saved one last."""
    table = model_table({summary.name(key): model for key, model in summary.models.items()}, final=True)
    if same_speed(summary.saved.metrics, summary.dense.metrics):
        return replace(table, remarks=[*table.remarks, SAME_SPEED])
    return table


SWEEP_SPEEDS = (
    "Speeds are factors of the dense model's, which was timed in turn with each size, ± the spread of the rounds."
)


def sweep_table(sizes: Mapping[str, Summary]) -> Table:
    """A row for the dense model and for each size of a sweep, by the name of its folder.

    Sizes are timed at different moments, so only factors of the dense model, timed in turn with each, can be compared.
    """
    largest = next(iter(sizes.values()))
    models = {DENSE: largest.dense} | {name: summary.saved for name, summary in sizes.items()}
    own_dense = {name: summary.dense.metrics for name, summary in sizes.items()}
    metrics, table = columns(model.metrics for model in models.values()), model_table(models)
    rows = [
        (
            name,
            *(
                speed_beside(metric, models[str(name)].metrics, own_dense.get(str(name))) or cell
                for metric, cell in zip(metrics, cells, strict=True)
            ),
        )
        for name, *cells in table.rows
    ]
    headings = ("model", *map(speed_heading, metrics))
    remarks = list(table.remarks)
    for metric in metrics:
        remarks = [remark.replace(metric.heading, speed_heading(metric)) for remark in remarks]
    if headings != tuple(table.headings):
        remarks.append(SWEEP_SPEEDS)
    return replace(table, headings=headings, rows=rows, remarks=remarks)


def file_table(summary: Summary) -> Table | None:
    """Sizes of GGUF files of the dense and of the saved model; None where llama.cpp can't run the saved one."""
    if (file := summary.file) is None:
        return None
    remarks = ["Sizes are predicted."]
    if file.bytes is not None:
        remarks.append(f"The file that came in has {amounts.size(file.bytes)}.")
    if summary.budget is not None and summary.budget.kind == "file":
        over = [kind for kind, n_bytes in file.predicted.items() if n_bytes > summary.budget.upper]
        if over:
            remarks.append(f"Larger than the bound of {amounts.size(summary.budget.upper)}: {', '.join(over)}.")
    named = {summary.name(DENSE): file.dense, summary.name(summary.saved_key): file.predicted}
    rows = [(name, *(amounts.size(sizes[kind]) for kind in file.predicted)) for name, sizes in named.items()]
    return Table(("GGUF file", *file.predicted), rows, remarks, final=True)


def passages(summary: Summary) -> list[Passage]:
    """Further measurements: sections with tables. The user's own scores come first, then the steps in their order."""
    copying = copying_passage(summary.models, summary.name)
    by_steps = [passage for figures in summary.steps.values() for passage in figures.passages(summary.name)]
    reading = reading_passage(summary.models, summary.name)
    own = [] if summary.curve is None else [summary.curve.passage()]
    return [*own, *(passage for passage in (reading, copying) if passage is not None), *by_steps]
