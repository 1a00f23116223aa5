"""`report.html`: one page, readable anywhere, that tells what was gained and what was lost."""

from __future__ import annotations

from typing import Any

import yaml
from markupsafe import Markup

from darwinlm.report import plots, wording
from darwinlm.report.looking_back import COPIED, looking_back_remarks, looking_back_rows, where_rows, where_words
from darwinlm.report.next_steps import next_steps
from darwinlm.report.render import render
from darwinlm.report.strip import KINDS, block_rows, kept_cells, nats
from darwinlm.report.summary import Summary
from darwinlm.report.table import COLUMNS, comparison_rows


def render_page(summary: Summary) -> str:
    """Render a run's summary as one self-contained HTML page.

    Nothing is loaded from elsewhere, and names, prompts and continuations are escaped. What wasn't done or isn't known
    is left out or said to be unknown.
    """
    return render("run.html.j2", _view(summary), "copy.js")


def _view(summary: Summary) -> dict[str, Any]:
    looking_back, copied = None, looking_back_rows(summary, split=False)
    if copied is not None and len(copied[0]) > 1:
        words = " ".join([COPIED, *looking_back_remarks(summary)])
        looking_back = {"columns": copied[0], "rows": copied[1], "words": words}
    return {
        "version": summary.version,
        "title": wording.title(summary),
        "training": wording.what_training_left(summary),
        "tiles": _tiles(summary),
        "columns": COLUMNS,
        "rows": comparison_rows(summary),
        "vocabulary": _vocabulary(summary),
        "where": _where(summary),
        "looking_back": looking_back,
        "measured_on": wording.measured_on(summary),
        "machine": wording.machine_words(summary),
        "budget": _budget(summary),
        "search": _search(summary),
        "refit": _refit(summary),
        "recovery": _recovery(summary),
        "blocks": _blocks(summary),
        "samples": _samples(summary),
        "steps": next_steps(summary, ".", "../smaller", wording.hub_id(summary.model)),
        "text": _text(summary),
        "stages": {
            "rows": [(stage.name, wording.duration(stage.seconds), stage.reused) for stage in summary.stages],
            "total": wording.duration(sum(stage.seconds for stage in summary.stages)),
        },
        "time_limit": wording.time_limit(summary),
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


def _vocabulary(summary: Summary) -> dict[str, Any] | None:
    """What the smaller vocabulary cost, and the length of held-out text in it."""
    vocabulary = summary.vocabulary
    if vocabulary is None:
        return None
    rows = [
        (
            name,
            f"{text.bytes:,}",
            f"{text.dense_tokens / text.bytes:.3f}",
            f"{text.tokens / text.bytes:.3f}",
            f"{100 * (text.tokens / text.dense_tokens - 1):.1f} %",
            wording.percent(text.affected, text.dense_tokens),
        )
        for name, text in vocabulary.domains.items()
    ]
    columns = ("held-out text", "bytes", "tokens per byte, all", "kept", "more tokens", "tokens affected")
    return {"words": wording.vocabulary_words(vocabulary), "columns": columns, "rows": rows}


def _where(summary: Summary) -> dict[str, Any] | None:
    """A table whose cells are shaded by their share of the largest loss."""
    found = where_rows(summary)
    if found is None:
        return None
    headings, rows = found
    most = max((kl for _, row in rows for kl in row if kl), default=1.0)
    return {
        "columns": headings,
        "rows": [(name, [(wording.divergence(kl), f"{(kl or 0.0) / most:.2f}") for kl in row]) for name, row in rows],
        "words": where_words(summary),
    }


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
    return {
        "words": (
            f"The sizes come from {wording.searched_by(search)}. It started from nearly equal layers at KL "
            f"{wording.divergence(search.start_kl)} to {cut} and ended at {wording.divergence(search.kl)} nats per "
            f"token on the search's own text, after {search.evaluations:,} evaluations in "
            f"{wording.duration(search.seconds)}: {search.ended}. The best model with equal layers has "
            f"{wording.divergence(search.uniform_kl)} on that text."
        ),
        "svg": Markup(  # noqa: S704
            plots.for_page(lambda narrow: plots.search_plot(search.history, search.uniform_kl, narrow=narrow))
        )
        if search.history
        else None,
    }


def _refit(summary: Summary) -> str | None:
    refit = summary.refit
    if refit is None:
        return None
    fitted = [choice for choice in refit.choices if choice.ridge is not None]
    measured = ""
    if refit.kl_before is not None and refit.kl_after is not None:
        measured = f" (KL {wording.divergence(refit.kl_before)} before, {wording.divergence(refit.kl_after)} after)"
    taken = (
        f"The model took {refit.strength:.0%} of the way to these weights, which was best on validation text{measured}."
        if refit.kept == "refit"
        else f"The whole model was not better with them on validation text{measured}, so the weights before the refit "
        "were kept."
    )
    rest = (
        "; the others kept their weights, because no fit was better on validation text"
        if len(fitted) < len(refit.choices)
        else ""
    )
    return f"{len(fitted)} of {len(refit.choices)} modules were fitted toward the dense model{rest}. {taken}"


def _recovery(summary: Summary) -> dict[str, Any] | None:
    recovery = summary.recovery
    if recovery is None:
        return None
    source = wording.short_source(summary.text.training_source)
    last = " after the last round of pruning" if summary.from_pruned else ""
    held_out = [point for point in recovery.log if point.eval_kl is not None]
    kept = (
        ""
        if recovery.kept == "trained"
        else " The loss on held-out text did not fall, so the weights from before were kept."
    )
    return {
        "words": (
            f"The model was trained{last} on {recovery.tokens:,} tokens of {source} in {recovery.steps:,} steps, "
            f"{wording.duration(recovery.seconds)}.{kept}"
        ),
        "svg": Markup(plots.for_page(lambda narrow: plots.recovery_plot(recovery.log, narrow=narrow)))  # noqa: S704
        if len(held_out) > 1
        else None,
    }


def _blocks(summary: Summary) -> dict[str, Any] | None:
    """What is left of each block, what each module means to the model, and both in numbers."""
    allocation, sensitivity = summary.allocation, summary.sensitivity
    if not allocation:
        return None
    attention, mlp = wording.gone(allocation)
    words = "No attention or MLP is removed as a whole."
    if attention or mlp:
        words = (
            f"{attention} of {len(allocation)} attention sub-layers and {mlp} of {len(allocation)} MLP sub-layers are "
            "removed as a whole."
        )
    losses = {(row.block, row.kind): row for row in sensitivity}
    columns = ["block", "KV groups", "query heads", "MLP width"]
    if sensitivity:
        columns += [f"{name} {what}" for name in KINDS.values() for what in ("removed", "halved")]
    rows = []
    for entry in allocation:
        cells = [(words, not share) for share, words in kept_cells(entry)]
        for kind in KINDS if sensitivity else ():
            own = losses.get((entry.block, kind))
            cells += [(nats(loss), False) for loss in ((own.removed, own.halved) if own else (None, None))]
        rows.append((entry.block, cells))
    return {
        "words": words + wording.kept_whole(summary),
        "picture": [(label, Markup(svg)) for label, svg in block_rows(allocation, sensitivity)],  # noqa: S704
        "columns": columns,
        "rows": rows,
        "sensitivity": bool(sensitivity),
        "cut": "the model that the last round cut" if summary.from_pruned else "the dense model",
    }


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
