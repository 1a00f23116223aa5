"""`report.html`: one page, readable anywhere, that tells what was gained and what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from darwinlm.report import plots, wording
from darwinlm.report.looking_back import WORDS, looking_back_remarks, looking_back_rows
from darwinlm.report.strip import allocation_strip
from darwinlm.report.summary import BlockFigures, Summary
from darwinlm.report.table import COLUMNS, comparison_rows


def render_page(summary: Summary) -> str:
    """Render a run's summary as one self-contained HTML page.

    Nothing is loaded from elsewhere, and names, prompts and continuations are escaped.

    Args:
        summary: of a run or a recovery; what wasn't done or isn't known is left out or said to be unknown.

    Returns:
        The page; write it as UTF-8.
    """
    template = resources.files("darwinlm.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(_view(summary))


def _view(summary: Summary) -> dict[str, Any]:
    allocation = summary.allocation
    return {
        "version": summary.version,
        "title": wording.title(summary),
        "headline": wording.headline(summary),
        "tiles": _tiles(summary),
        "columns": COLUMNS,
        "rows": comparison_rows(summary),
        "looking_back": _looking_back(summary),
        "measured_on": wording.measured_on(summary),
        "machine": wording.machine_words(summary),
        "budget": _budget(summary),
        "search": _search(summary),
        "refit": _refit(summary),
        "recovery": _recovery(summary),
        "training": wording.what_training_left(summary),
        "size_svg": Markup(_size_svg(summary)),  # noqa: S704
        "strip": Markup(allocation_strip(allocation)) if allocation else None,  # noqa: S704
        "allocation": [_allocation_row(entry) for entry in allocation],
        "allocation_words": _allocation_words(allocation),
        "samples": _samples(summary),
        "text": _text(summary),
        "stages": _stages(summary),
        "recipe": yaml.safe_dump(_without_folders(summary.recipe), sort_keys=False, allow_unicode=True),
        "custom_code": summary.export.custom_code,
        "dtype": summary.export.dtype,
        "loading_code": wording.loading_code(summary),
    }


def _without_folders(value: Any) -> Any:
    """The recipe with files named without the folders that they lie in: pages are published."""
    if isinstance(value, dict):
        return {name: _without_folders(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return wording.short_source(value) if isinstance(value, str) and value.startswith(("/", "~", "\\")) else value


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    """The figures that a reader looks for, as (what, figure, compared with what)."""
    final, dense = summary.saved, summary.dense
    tiles = [
        (
            "block parameters",
            wording.percent(final.block_params, dense.block_params),
            f"{wording.count(final.block_params)} of {wording.count(dense.block_params)} kept",
        ),
        (
            "perplexity",
            wording.perplexity(final.perplexity),
            f"dense {wording.perplexity(dense.perplexity)}{_uniform(summary)}",
        ),
        ("weights", f"{wording.megabytes(final.bytes)} MB", f"dense {wording.megabytes(dense.bytes)} MB"),
    ]
    for what, small, large in (
        ("prompt speed", final.tokens_per_second, dense.tokens_per_second),
        ("decode speed", final.decode_tokens_per_second, dense.decode_tokens_per_second),
    ):
        times = wording.factor(small, large)
        if times:
            tiles.append((what, f"×{times}", f"{wording.rate(small)} tokens/s, dense {wording.rate(large)}"))
    return tiles


def _looking_back(summary: Summary) -> dict[str, Any] | None:
    found = looking_back_rows(summary)
    if found is None:
        return None
    return {"columns": found[0], "rows": found[1], "words": " ".join([WORDS, *looking_back_remarks(summary)])}


def _uniform(summary: Summary) -> str:
    uniform = summary.models.get("uniform")
    if uniform is None:
        return ""
    name = wording.model_name("uniform", summary).replace(",", " of the")
    return f", {name} {wording.perplexity(uniform.perplexity)}"


def _budget(summary: Summary) -> str:
    budget = summary.budget
    if budget is None:
        return ""
    left = f"which leaves {100 * budget.unused:.2f} % of it unused."
    if budget.kind == "keep" and budget.keep is not None:
        return (
            f"The budget was {100 * budget.keep:.4g} % of the block parameters, {budget.upper:,.0f}; "
            f"{budget.block_params:,} were used, {left}"
        )
    limit, used, dense = (wording.amount(value, budget.unit) for value in (budget.upper, budget.used, budget.dense))
    return f"The budget was {limit} of the dense model's {dense}; {used} were used, {left}"


def _search(summary: Summary) -> dict[str, Any] | None:
    search = summary.search
    if search is None:
        return None
    cut = "the model that this round cut" if summary.from_pruned else "the dense model"
    points = [plots.SearchPoint(each.seconds, each.kl, improved=each.improved) for each in search.history]
    return {
        "words": (
            f"The sizes come from {wording.searched_by(search)}. It began with nearly equal layers at KL "
            f"{wording.divergence(search.start_kl)} to {cut} and ended at {wording.divergence(search.kl)} nats per "
            f"token of the search's own text, after {search.evaluations:,} evaluations in "
            f"{wording.duration(search.seconds)}: {search.ended}. The best model with equal layers has "
            f"{wording.divergence(search.uniform_kl)} there."
        ),
        "svg": Markup(plots.search_plot(points)) if points else None,  # noqa: S704
    }


def _refit(summary: Summary) -> dict[str, Any] | None:
    refit = summary.refit
    if refit is None:
        return None
    fitted = [choice for choice in refit.choices if choice.ridge is not None]
    taken = (
        f"The model took {refit.strength:.0%} of the way to these weights, which was best on validation text."
        if refit.kept == "refit"
        else "The whole model was no better for it on validation text, so the stitched weights stay."
    )
    rest = (
        "; the others kept their weights, because no fit was better on validation text"
        if len(fitted) < len(refit.choices)
        else ""
    )
    return {
        "words": (
            f"{len(fitted)} of {len(refit.choices)} modules were fitted toward the dense model{rest}. {taken} Errors "
            "are relative to the energy of what the module should have given."
        ),
        "svg": Markup(plots.refit_plot(refit.choices)) if refit.choices else None,  # noqa: S704
    }


def _recovery(summary: Summary) -> dict[str, Any] | None:
    recovery = summary.recovery
    if recovery is None:
        return None
    source = wording.short_source(summary.text.training_source)
    last = " after the last round of pruning" if summary.from_pruned else ""
    held_out = [point for point in recovery.log if point.eval_kl is not None]
    return {
        "words": (
            f"The model was trained{last} on {recovery.tokens:,} tokens of {source} in {recovery.steps:,} steps, "
            f"{wording.duration(recovery.seconds)}."
        ),
        "svg": Markup(plots.recovery_plot(recovery.log)) if len(held_out) > 1 else None,  # noqa: S704
    }


def _size_svg(summary: Summary) -> str:
    return plots.size_plot(
        [
            plots.SizePoint(
                wording.model_name(key, summary), model.block_params / 1e6, model.perplexity, key == summary.saved_key
            )
            for key, model in summary.measured()
            if model.perplexity is not None
        ]
    )


def _allocation_row(entry: BlockFigures) -> dict[str, Any]:
    cells = []
    for field in ("groups", "heads", "width"):
        kept, whole = getattr(entry, field), getattr(entry, f"dense_{field}")
        text = f"{kept:,} of {whole:,}" if kept else "gone" if whole else "never there"
        if field == "width" and entry.experts:
            text = f"{entry.experts:,} of {entry.dense_experts:,} experts, {text} wide"
        cells.append({"text": text, "gone": not kept})
    return {"block": entry.block, "cells": cells}


def _allocation_words(allocation: Sequence[BlockFigures]) -> str:
    attention, mlp = wording.gone(allocation)
    if not attention and not mlp:
        return "No sub-layer is gone as a whole."
    return (
        f"{attention} of {len(allocation)} attention sub-layers and {mlp} of {len(allocation)} MLP sub-layers are gone "
        "as a whole."
    )


def _samples(summary: Summary) -> list[dict[str, Any]]:
    """Continuations of each prompt by the dense and the saved model."""
    samples = []
    for number, prompt in enumerate(summary.prompts):
        texts = [
            {"name": wording.model_name(key, summary), "text": wording.collapsed(model.continuations[number])}
            for key, model in summary.measured()
            if key in ("dense", summary.saved_key) and number < len(model.continuations)
        ]
        if texts:
            samples.append({"prompt": prompt, "texts": texts})
    return samples


def _text(summary: Summary) -> dict[str, Any]:
    text, refit, recovery = summary.text, summary.refit is not None, summary.recovery is not None
    used_for = {
        "calibration": ["second moments of the database", *["the refit"] * refit],
        "fitness": ["losses of the search's candidates"],
        "validation": [*["strength of the refit"] * refit, *["held-out loss while training"] * recovery],
        "training": ["training of the search's candidates"],
        "evaluation": ["the figures of this page"],
    }
    return {
        "source": wording.short_source(text.source),
        "sequence_length": text.sequence_length,
        "purposes": [
            (
                purpose,
                "; ".join(used_for.get(purpose, ())) or "check of the saved model",
                f"{amount.tokens:,}",
                f"{amount.documents:,}",
            )
            for purpose, amount in text.purposes.items()
        ],
    }


def _stages(summary: Summary) -> dict[str, Any]:
    return {
        "rows": [(stage.name, wording.duration(stage.seconds), stage.reused) for stage in summary.stages],
        "total": wording.duration(sum(stage.seconds for stage in summary.stages)),
    }
