"""The architecture as rows of cells, a column for each block: what is kept of it, and what it would cost to lose it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from darwinlm.report import wording
from darwinlm.report.summary import BlockFigures
from darwinlm.runtime.figures import Sensitivity

FAINTEST = 0.06
"""Opacity of the least loss."""

DECADES = 5
"""Powers of ten that the shades tell apart."""

KINDS = {"attention": "attention", "mlp": "MLP"}
Cells = list[tuple[float, str]]
"""Share that is kept, and words."""
Strip = tuple[str, str, Sequence[tuple[float, float | None, str]]]
"""Kind of module, label, and for each block the width of its cell from 0 to 1, its opacity if it has one, and words."""


def block_rows(allocation: Sequence[BlockFigures], sensitivity: Sequence[Sensitivity] = ()) -> list[Strip]:
    """Rows of the picture. Shades of `sensitivity` are of one logarithmic scale."""
    rows: list[Strip] = []
    darkest = max((row.removed for row in sensitivity), default=0.0)
    losses = {(row.block, row.kind): row for row in sensitivity}
    for kind, name in KINDS.items():
        place, unit = (1, "query heads") if kind == "attention" else (2, "MLP channels")
        kept = ((entry.block, *kept_cells(entry)[place]) for entry in allocation)
        cells = [(share, None, f"block {block}, {unit}: {words}") for block, share, words in kept]
        rows.append((kind, f"{name}: what is kept", cells))
        for field in ("removed", "halved") if sensitivity else ():
            shaded = []
            for entry in allocation:
                own = losses.get((entry.block, kind))
                loss = None if own is None else getattr(own, field)
                words = "not estimated" if loss is None else f"{nats(loss)} nats/token"
                shade = 0.0 if loss is None else _shade(loss, darkest)
                shaded.append((1.0, shade, f"block {entry.block}, {name} {field}: {words}"))
            rows.append((kind, f"{name}: loss if {field}", shaded))
    return rows


def nats(loss: float | None) -> str:
    """Write a predicted loss, in two digits."""
    return wording.NOTHING if loss is None else f"{loss:.2g}" if abs(loss) < 9.95 else f"{loss:.0f}"


def _shade(loss: float, darkest: float) -> float:
    if loss <= 0 or darkest <= 0:
        return FAINTEST
    return max(FAINTEST, 1 - (1 - FAINTEST) * math.log10(darkest / loss) / DECADES)


def kept_cells(entry: BlockFigures) -> Cells:
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
