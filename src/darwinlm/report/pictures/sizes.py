"""Size against loss: of the models that a run compares, and of the sizes of a sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from darwinlm.report.summary import Summary
from darwinlm.runtime.amounts import count
from darwinlm.runtime.charts import Axis, Chart, Colour, Curve, Picture, counted
from darwinlm.steps.evaluate.metric import TokenMetric, token_metrics
from darwinlm.steps.evaluate.model_figures import DENSE, ModelFigures

Named = Sequence[tuple[str, ModelFigures]]
NAME = "sizes"


def compared_picture(summary: Summary) -> Picture | None:
    """Every measured model by its size and by what it lost; None if nothing was measured that compares them."""
    models = [(summary.name(key), model) for key, model in summary.models.items()]
    charts = []
    for metric in token_metrics(comparing=True):
        parts: tuple[tuple[Named, Colour], ...] = (
            (models[:1], "muted"),
            (models[1:-1], "second"),
            (models[-1:], "accent"),
        )
        curves = [_curve("", part, metric, colour) for part, colour in parts]
        if curves[-1] is not None:
            charts.append(_chart(metric, [curve for curve in curves if curve is not None]))
    return Picture(NAME, tuple(charts)) if charts else None


def sweep_picture(sizes: Mapping[str, Summary]) -> Picture | None:
    """What each size of a sweep lost, beside the uniform model of that size; None if nothing was measured."""
    dense = (DENSE, next(iter(sizes.values())).dense)
    saved = [dense, *((name, summary.saved) for name, summary in sizes.items())]
    uniform = [dense, *((name, model) for name, summary in sizes.items() if (model := summary.uniform) is not None)]
    charts = []
    for metric in token_metrics(comparing=True):
        ours = _curve("these models", saved, metric, "accent", joined=True)
        others = _curve("uniform models", uniform, metric, "second", joined=True, labelled=False)
        if ours is not None and len(ours.xs) > 1:
            curves = [ours, others] if others is not None and len(others.xs) > 1 else [ours]
            charts.append(_chart(metric, curves))
    return Picture(NAME, tuple(charts)) if charts else None


def _chart(metric: TokenMetric, curves: Sequence[Curve]) -> Chart:
    words = metric.heading.partition(",")[0]
    lowest = metric.smaller_is_better is True
    y = Axis(metric.heading, metric.words, zero=lowest)
    better = {True: "lower is better", False: "higher is better", None: ""}[metric.smaller_is_better]
    title = f"{words[:1].upper()}{words[1:]} by size" + (f" ({better})" if better else "")
    return Chart(title, counted("parameters"), y, tuple(curves))


def _curve(
    name: str, models: Named, metric: TokenMetric, colour: Colour, *, joined: bool = False, labelled: bool = True
) -> Curve | None:
    """The models of which a metric is known; None without any."""
    points = [
        (float(model.params), float(value), label)
        for label, model in sorted(models, key=lambda named: named[1].params)
        if (value := model.metrics.get(metric.name)) is not None and math.isfinite(value)
    ]
    if not points:
        return None
    xs, ys, labels = zip(*points, strict=True)
    tips = tuple(f"{label}: {count(x)} parameters, {metric.heading} {metric.words(y)}" for x, y, label in points)
    return Curve(
        name, xs, ys, tips, colour, labels=labels if labelled else (), joined=joined, dotted=joined and not labelled
    )
