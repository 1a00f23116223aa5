"""The picture of a model: what is kept of the attention and the MLP of every block."""

from __future__ import annotations

from collections.abc import Sequence

from darwinlm.report.summary import BlockFigures
from darwinlm.runtime.amounts import percent
from darwinlm.runtime.charts import Axis, Bars, Chart, Picture, whole


def blocks_picture(allocation: Sequence[BlockFigures]) -> Picture | None:
    """Kept query heads and MLP channels of every block, of those it had; None if nothing is known of them."""
    attention = [
        (entry.block, entry.heads, entry.dense_heads, f"KV groups {entry.groups} of {entry.dense_groups}")
        for entry in allocation
    ]
    mlp = [
        (
            entry.block,
            entry.channels,
            entry.dense_channels,
            f"experts {entry.experts} of {entry.dense_experts}" if entry.dense_experts else "",
        )
        for entry in allocation
    ]
    of_all = " of all experts" if any(entry.dense_experts for entry in allocation) else ""
    charts = [
        chart
        for chart in (
            _chart("Attention kept in each block", "query heads", attention),
            _chart("MLP kept in each block", f"MLP channels{of_all}", mlp),
        )
        if chart is not None
    ]
    return Picture("blocks", tuple(charts)) if charts else None


def _chart(title: str, unit: str, rows: Sequence[tuple[int, int, int, str]]) -> Chart | None:
    """A bar for each block; None if no block of the dense model has this part."""
    if not any(total for _, _, total, _ in rows):
        return None
    tips = tuple(
        f"block {block}: {kept:,} of {total:,} {unit} ({percent(kept, total)})" + (f", {more}" if more else "")
        for block, kept, total, more in rows
    )
    blocks, kept, totals, _ = zip(*rows, strict=True)
    bars = Bars(blocks, kept, totals, tips, names=("kept", "removed"))
    return Chart(title, Axis("block", whole, steps=True), Axis(unit, whole, steps=True), (bars,))
