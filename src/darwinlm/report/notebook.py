"""How a finished run shows itself below the cell of a notebook."""

from __future__ import annotations

from html import escape
from pathlib import Path

from darwinlm.report import wording
from darwinlm.report.comparison import comparison
from darwinlm.report.pictures.blocks import blocks_picture
from darwinlm.report.summary import Summary
from darwinlm.runtime import tables
from darwinlm.runtime.limits import visible


def notebook_html(summary: Summary, page: Path | None = None) -> str:
    """What was gained and lost, the models compared, and what is kept of each block; `page` is where the rest is."""
    from darwinlm.report.pictures.vector import stand_alone

    lines = [(name, words) for name, words in wording.gains(summary)]
    lines += [("page", str(page))] if page is not None else []
    said = "".join(f"<div><b>{_shown(name)}</b> {_shown(words)}</div>" for name, words in lines)
    picture = blocks_picture(summary.allocation)
    drawn = "" if picture is None else f'<div style="max-width:50rem">{stand_alone(picture, dark=False)}</div>'
    # Notebooks have themes of their own, which a picture doesn't know.
    style = "background:#fff;color:#1d2129;padding:.6rem;max-width:62rem"
    return (
        f'<div style="{style}"><h3>{_shown(wording.title(summary))}</h3>{said}'
        f"{tables.html(comparison(summary))}{drawn}</div>"
    )


def _shown(text: str) -> str:
    return escape(visible(text))
