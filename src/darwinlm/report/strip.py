"""The architecture as one strip: a column for each block, as wide as what remains of it."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from darwinlm.report.summary import BlockFigures

COLUMN, ROW, GAP = 20.0, 44.0, 6.0
"""Room of a block and of a sub-layer in it, and what lies between rows, in units of the picture."""


def allocation_strip(allocation: Sequence[BlockFigures]) -> str:
    """SVG of attention above MLP for each block, with the numbers on hover.

    Args:
        allocation: of all blocks, at least one.
    """
    width, height = COLUMN * len(allocation), 2 * ROW + GAP
    parts = []
    for place, entry in enumerate(allocation):
        kinds = (
            ("attention", 0.0, entry.heads, entry.dense_heads, "query heads"),
            ("mlp", ROW + GAP, entry.channels, entry.dense_channels, "MLP channels"),
        )
        for kind, top, kept, whole, unit in kinds:
            words = f"{kept:,} of {whole:,} {unit}" if kept else f"{unit}: gone" if whole else f"{unit}: never there"
            parts.append(_column(kind, place, top, kept / whole if whole else 0.0, f"block {entry.block}, {words}"))
    label = "What remains of each block: attention above, MLP below"
    return (
        f'<svg class="strip" viewBox="0 0 {width:g} {height:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{label}"><title>{label}</title>{"".join(parts)}</svg>'
    )


def _column(kind: str, place: int, top: float, share: float, words: str) -> str:
    left, room = place * COLUMN, COLUMN - 2
    inner = room * share
    return (
        f"<g><title>{escape(words)}</title>"
        f'<rect x="{left + 1:g}" y="{top:g}" width="{room:g}" height="{ROW:g}" fill="var(--plot-grid)"/>'
        f'<rect x="{left + 1 + (room - inner) / 2:.4g}" y="{top:g}" width="{inner:.4g}" height="{ROW:g}" '
        f'fill="var(--plot-{kind})"/></g>'
    )
