"""The architecture as rows of cells, a column for each block: what is kept of it, and what it would cost to lose it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from darwinlm.figures import Sensitivity
from darwinlm.report import wording
from darwinlm.report.summary import BlockFigures

COLUMN, GAP = 20.0, 2.0
"""Room of a block, and of it between two blocks, in units of the picture."""

FAINTEST = 0.06
"""Opacity of the least loss."""

DECADES = 5
"""Powers of ten that the shades tell apart."""

KINDS = {"attention": "attention", "mlp": "MLP"}


def block_rows(allocation: Sequence[BlockFigures], sensitivity: Sequence[Sensitivity] = ()) -> list[tuple[str, str]]:
    """Rows of the picture as (label, SVG), the numbers on hover.

    Shades of `sensitivity` are of one logarithmic scale.
    """
    rows = []
    darkest = max((row.removed for row in sensitivity), default=0.0)
    losses = {(row.block, row.kind): row for row in sensitivity}
    for kind, name in KINDS.items():
        label = f"{name}: what is kept"
        place, unit = (1, "query heads") if kind == "attention" else (2, "MLP channels")
        kept = ((entry.block, *kept_cells(entry)[place]) for entry in allocation)
        cells = [_cell(share, f"block {block}, {unit}: {words}") for block, share, words in kept]
        rows.append((label, _row(kind, label, cells)))
        for field, words in (("removed", "loss if removed"), ("halved", "loss if halved")):
            cells = []
            for entry in allocation:
                own = losses.get((entry.block, kind))
                loss = None if own is None else getattr(own, field)
                shown = f"block {entry.block}, {name} {field}: " + (
                    "not estimated" if loss is None else f"{nats(loss)} nats/token"
                )
                cells.append(_cell(1.0, shown, 0.0 if loss is None else _shade(loss, darkest)))
            if sensitivity:
                rows.append((f"{name}: {words}", _row(kind, f"{name}: {words}", cells)))
    return rows


def nats(loss: float | None) -> str:
    """Write a predicted loss, in two digits."""
    return wording.NOTHING if loss is None else f"{loss:.2g}" if abs(loss) < 9.95 else f"{loss:.0f}"


def _shade(loss: float, darkest: float) -> float:
    """Opacity of a loss."""
    if loss <= 0 or darkest <= 0:
        return FAINTEST
    return max(FAINTEST, 1 - (1 - FAINTEST) * math.log10(darkest / loss) / DECADES)


def kept_cells(entry: BlockFigures) -> list[tuple[float, str]]:
    """Share and number of the KV groups, query heads and MLP channels that a block keeps."""
    cells = []
    for field in ("groups", "heads", "width"):
        kept, whole = getattr(entry, field), getattr(entry, f"dense_{field}")
        text = f"{kept:,} of {whole:,}" if kept else "gone" if whole else "never there"
        if field == "width" and entry.experts:
            text = f"{entry.experts:,} of {entry.dense_experts:,} experts, {text} wide"
            kept, whole = entry.channels, entry.dense_channels
        cells.append((kept / whole if whole else 0.0, text))
    return cells


def _cell(share: float, words: str, shade: float | None = None) -> str:
    """A cell that fills a share of its column, on a ground where it has no shade of its own."""
    room = COLUMN - GAP
    inner = room * share
    ground = f'<rect class="ground" x="{GAP / 2:g}" width="{room:g}" height="10"/>' if shade is None else ""
    opacity = "" if shade is None else f' fill-opacity="{shade:.2f}"'
    cell = f'<rect x="{(COLUMN - inner) / 2:.4g}" width="{inner:.4g}" height="10"{opacity}/>'
    return f"<title>{escape(words)}</title>{ground}{cell}"


def _row(kind: str, label: str, cells: Sequence[str]) -> str:
    width = COLUMN * len(cells)
    groups = (f'<g transform="translate({COLUMN * place:g})">{cell}</g>' for place, cell in enumerate(cells))
    return (
        f'<svg class="strip {kind}" viewBox="0 0 {width:g} 10" preserveAspectRatio="none" role="img" '
        f"aria-label={quoteattr(label)}>{''.join(groups)}</svg>"
    )
