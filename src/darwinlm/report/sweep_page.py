"""Size against loss of a sweep: the cells of its table, and its page."""

from __future__ import annotations

from collections.abc import Mapping

from darwinlm.report import wording
from darwinlm.report.render import render
from darwinlm.report.summary import Summary

HEADINGS = ("model", "parameters", "weights", "KL", "perplexity", "prompt", "decode")


def sweep_cells(sizes: Mapping[str, Summary]) -> list[tuple[str, ...]]:
    """Rows of cells under `HEADINGS`: the dense model, and each size by the name of its folder."""
    models = {"dense": next(iter(sizes.values())).dense} | {name: each.saved for name, each in sizes.items()}
    return [
        (
            name,
            wording.count(model.params),
            wording.size(model.bytes),
            wording.kl(model.kl),
            wording.perplexity(model.perplexity),
            f"{wording.rate(model.tokens_per_second)} tokens/s",
            f"{wording.rate(model.decode_tokens_per_second)} tokens/s",
        )
        for name, model in models.items()
    ]


def sweep_page(sizes: Mapping[str, Summary]) -> str:
    """`index.html`: the table with a link to each model's page. The runs share model, text and machine."""
    first = next(iter(sizes.values()))
    return render(
        "sweep.html.j2",
        title=f"{wording.plain_name(first.model)} in {len(sizes)} smaller sizes",
        columns=HEADINGS,
        rows=list(zip((None, *sizes), sweep_cells(sizes), strict=True)),
        first=first,
    )
