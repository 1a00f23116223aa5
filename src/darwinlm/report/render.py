"""Pages and cards from templates; a page is one file, readable from a disk, with nothing loaded from elsewhere."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from darwinlm.report import usage, wording
from darwinlm.runtime import amounts
from darwinlm.runtime.limits import visible
from darwinlm.runtime.version import VERSION


def render(template: str, **values: Any) -> str:
    """Fill a template, which also sees `wording`, `usage` and `amounts`; in HTML every value is escaped."""
    environment = Environment(
        loader=PackageLoader("darwinlm", "report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    environment.globals |= {"wording": wording, "usage": usage, "amounts": amounts}
    environment.filters["unbroken"] = _unbroken
    return environment.get_template(template).render({"version": VERSION, **values})


def _shown(value: Any) -> Any:
    """A value as it stands in a page: names and answers of models may hold marks that reorder text."""
    return visible(value) if type(value) is str else value


def _unbroken(cell: str) -> str:
    """Keep a figure and its unit on one line; what follows in brackets may go to the next."""
    return cell.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}(", " (")
