"""`report.html`: one page, readable anywhere, that tells what was gained and what was lost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from darwinlm.report import plots, wording
from darwinlm.report.finalists import last_choice
from darwinlm.report.looking_back import WORDS, looking_back_remarks, looking_back_rows
from darwinlm.report.table import COLUMNS, comparison_rows

_PURPOSES = {
    "calibration": "second moments of the database, and the refit",
    "fitness": "scores of modules and of the search's candidates",
    "validation": "strength of the refit",
    "training": "continued training",
    "evaluation": "the figures of this page",
}


def render_page(summary: Mapping[str, Any]) -> str:
    """Render a run's summary as one self-contained HTML page.

    Nothing is loaded from elsewhere, and names, prompts and continuations are escaped.

    Args:
        summary: of a run; `search` and `refit` may be None, and models that weren't made are left out.

    Returns:
        The page; write it as UTF-8.
    """
    template = resources.files("darwinlm.report").joinpath("template.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(_view(summary))


def _view(summary: Mapping[str, Any]) -> dict[str, Any]:
    allocation = summary.get("allocation") or []
    return {
        "version": summary["version"],
        "model": summary["model"],
        "name": wording.short_source(summary["model"]),
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
        "size_svg": Markup(_size_svg(summary)),  # noqa: S704
        "allocation_svg": Markup(plots.allocation_plot(allocation)) if allocation else None,  # noqa: S704
        "allocation": [_allocation_row(entry) for entry in allocation],
        "allocation_words": _allocation_words(allocation),
        "samples": _samples(summary),
        "text": _text(summary),
        "stages": _stages(summary),
        "recipe": yaml.safe_dump(
            json.loads(json.dumps(summary.get("recipe") or {}, default=str)), sort_keys=False, allow_unicode=True
        ),
        "custom_code": summary["export"]["custom_code"],
        "dtype": summary["export"]["dtype"],
        "loading_code": wording.loading_code(summary),
    }


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The four figures that a reader looks for, as (what, figure, compared with what)."""
    final, dense = summary["models"][wording.final_key(summary)], summary["models"]["dense"]
    budget = summary["budget"]
    kept, whole = budget["block_params"], budget["dense_block_params"]
    tiles = [
        ("block parameters", wording.percent(kept, whole), f"{wording.count(kept)} of {wording.count(whole)} kept"),
        (
            "perplexity",
            wording.perplexity(final.get("perplexity")),
            f"dense {wording.perplexity(dense.get('perplexity'))}; lower is better",
        ),
    ]
    if final.get("bytes") and dense.get("bytes"):
        small, large = wording.megabytes(final["bytes"]), wording.megabytes(dense["bytes"])
        tiles.append(("weights", f"{small} MB", f"dense {large} MB"))
    for what, key in (("prompt speed", "tokens_per_second"), ("decode speed", "decode_tokens_per_second")):
        times = wording.factor(final.get(key), dense.get(key))
        if times:
            tiles.append((what, f"×{times}", f"{wording.rate(final[key])} tokens/s, dense {wording.rate(dense[key])}"))
    return tiles


def _looking_back(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    found = looking_back_rows(summary)
    if found is None:
        return None
    return {"columns": found[0], "rows": found[1], "words": " ".join([WORDS, *looking_back_remarks(summary)])}


def _budget(summary: Mapping[str, Any]) -> str:
    budget = summary["budget"]
    left = f"which leaves {100 * budget['unused']:.2f} % of it unused."
    if budget.get("kind", "keep") == "keep":
        return (
            f"The budget was {100 * budget['keep']:.4g} % of the block parameters, {budget['upper']:,}; "
            f"{budget['block_params']:,} were used, {left}"
        )
    limit, used, dense = (wording.amount(budget[name], budget["unit"]) for name in ("upper", "used", "dense"))
    return f"The budget was {limit} of the dense model's {dense}; {used} were used, {left}"


def _search(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    search = summary.get("search")
    if search is None:
        return None
    history = _with_descent(search)
    steps = len(search.get("descent") or ())
    downhill = f"{steps} step{'s' if steps > 1 else ''} downhill and " if steps else ""
    uniform = search.get("uniform_kl")
    beside = "" if uniform is None else f" On the same text a uniform model has KL {wording.divergence(uniform)}."
    return {
        "words": (
            f"It began with the {search['start']} start at KL {wording.divergence(search['start_kl'])} and ended at "
            f"{wording.divergence(search['kl'])} nats per token after {downhill}{search['evaluations']:,} evaluations "
            f"in {wording.duration(search['seconds'])}: {search['ended']}.{beside}"
        ),
        "svg": Markup(plots.search_plot(history)) if history else None,  # noqa: S704
        "last_choice": last_choice(search),
    }


def _with_descent(search: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The history, with the start in front of what the steps downhill made of it."""
    history = list(search.get("history") or [])
    descent = search.get("descent")
    if not history or not descent:
        return history
    reached = {**history[0], "improved": any(step["moved"] for step in descent)}
    begun = {
        "kl": search["start_kl"],
        "improved": False,
        "seconds": max(0.0, reached["seconds"] - descent[-1]["seconds"]),
        "evaluations": descent[0]["evaluations"],
    }
    return [begun, reached, *history[1:]]


def _refit(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    refit = summary.get("refit")
    if refit is None:
        return None
    choices = refit["choices"]
    fitted = [choice for choice in choices if choice["ridge"] is not None]
    taken = (
        f"The model took {refit['strength']:.0%} of the way to these weights, which was best on validation text."
        if refit["kept"] == "refit"
        else "The whole model was no better for it on validation text, so the stitched weights stay."
    )
    return {
        "words": (
            f"{len(fitted)} of {len(choices)} output projections were fitted toward the dense model; the others kept "
            f"their weights, because no fit was better on validation text. {taken} Errors are relative to the energy "
            "of what the module should have given."
        ),
        "svg": Markup(plots.refit_plot(choices)) if choices else None,  # noqa: S704
    }


def _size_svg(summary: Mapping[str, Any]) -> str:
    final = wording.final_key(summary)
    return plots.size_plot(
        [
            plots.SizePoint(
                wording.model_name(key, summary), model["block_params"] / 1e6, model["perplexity"], key == final
            )
            for key in wording.measured_models(summary)
            if (model := summary["models"][key]).get("perplexity") is not None
        ]
    )


def _allocation_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    cells = []
    for field in ("groups", "heads", "width"):
        kept, whole = entry[field], entry[f"dense_{field}"]
        text = f"{kept:,} of {whole:,}" if kept else "gone" if whole else "never there"
        cells.append({"text": text, "gone": not kept})
    return {"block": entry["block"], "cells": cells}


def _allocation_words(allocation: Sequence[Mapping[str, Any]]) -> str:
    attention, mlp = wording.gone(allocation)
    if not attention and not mlp:
        return "No sub-layer is gone as a whole."
    return (
        f"{attention} of {len(allocation)} attention sub-layers and {mlp} of {len(allocation)} MLP sub-layers are gone "
        "as a whole."
    )


def _samples(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Continuations of each prompt, by model."""
    models = summary["models"]
    samples = []
    for number, prompt in enumerate(summary.get("prompts") or []):
        texts = []
        for key in wording.measured_models(summary):
            continuations = models[key].get("continuations") or []
            if number < len(continuations):
                texts.append({"name": wording.model_name(key, summary), "text": continuations[number].rstrip()})
        if texts:
            samples.append({"prompt": prompt, "texts": texts})
    return samples


def _text(summary: Mapping[str, Any]) -> dict[str, Any]:
    text = summary["text"]
    return {
        "source": text.get("source") or "unnamed",
        "sequence_length": text["sequence_length"],
        "purposes": [
            (purpose, _PURPOSES.get(purpose, ""), f"{amount['tokens']:,}", f"{amount['documents']:,}")
            for purpose, amount in text["purposes"].items()
        ],
    }


def _stages(summary: Mapping[str, Any]) -> dict[str, Any]:
    stages = summary.get("stages") or []
    return {
        "rows": [(stage["name"], wording.duration(stage["seconds"]), bool(stage["reused"])) for stage in stages],
        "total": wording.duration(sum(stage["seconds"] for stage in stages)),
    }
