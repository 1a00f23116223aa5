"""`report.html`: one page, readable anywhere, that tells what was gained and what was lost."""

from __future__ import annotations

import yaml

from darwinlm.report import wording
from darwinlm.report.comparison import comparison, file_table, passages
from darwinlm.report.pictures.blocks import blocks_picture
from darwinlm.report.pictures.sizes import compared_picture
from darwinlm.report.render import charts, render
from darwinlm.report.summary import BlockFigures, Summary
from darwinlm.runtime.published import without_folders
from darwinlm.steps.evaluate.metric import tiles
from darwinlm.steps.evaluate.model_figures import DENSE


def render_page(summary: Summary) -> str:
    """Render a run's summary as one self-contained HTML page.

    Nothing is loaded from elsewhere, and names, prompts and continuations are escaped. What wasn't done or isn't known
    is left out or said to be unknown.
    """
    uniform = summary.uniform
    return render(
        "run.html.j2",
        summary=summary,
        version=summary.version,
        title=wording.title(summary),
        tiles=tiles(summary.saved.metrics, summary.dense.metrics, uniform.metrics if uniform else None),
        compared=comparison(summary),
        files=file_table(summary),
        passages=passages(summary),
        compared_charts=charts(compared_picture(summary)),
        block_charts=charts(blocks_picture(summary.allocation)),
        block_rows=[(entry.block, _kept_cells(entry)) for entry in summary.allocation],
        samples=_samples(summary),
        recipe=yaml.safe_dump(without_folders(summary.recipe), sort_keys=False, allow_unicode=True),
    )


def _kept_cells(entry: BlockFigures) -> list[tuple[float, str]]:
    """Share and number of the KV groups, query heads and MLP channels that a block keeps."""
    cells = []
    for field in ("groups", "heads", "width"):
        remaining, original = getattr(entry, field), getattr(entry, f"dense_{field}")
        text = f"{remaining:,} of {original:,}" if remaining else "gone" if original else "never there"
        if field == "width" and entry.experts:
            text = f"{entry.experts:,} of {entry.dense_experts:,} experts, {text} wide"
            remaining, original = entry.channels, entry.dense_channels
        cells.append((min(remaining / original, 1.0) if original else 0.0, text))
    return cells


def _samples(summary: Summary) -> list[tuple[str, list[tuple[str, str]]]]:
    """Continuations of each prompt by the dense and the saved model, as (name, text)."""
    shown = [(key, summary.models[key]) for key in (DENSE, summary.saved_key)]
    samples = []
    for number, prompt in enumerate(summary.prompts):
        texts = [
            (summary.name(key), model.continuations[number].rstrip())
            for key, model in shown
            if number < len(model.continuations)
        ]
        samples += [(prompt, texts)] if texts else []
    return samples
