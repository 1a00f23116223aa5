"""Pages and cards from templates; a page is one file, readable from a disk, with nothing loaded from elsewhere."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from darwinlm.report import usage, wording
from darwinlm.runtime import amounts, published
from darwinlm.runtime.limits import visible
from darwinlm.runtime.version import VERSION


def render(template: str, **values: object) -> str:
    """Fill a template, which also sees `wording`, `usage` and `amounts`; in HTML every value is escaped."""
    environment = Environment(
        loader=PackageLoader("darwinlm", "report"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Names and answers of models may hold marks that reorder text.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.globals |= {"wording": wording, "usage": usage, "amounts": amounts, "published": published}
    # A figure and its unit stay on one line; what follows in brackets may go to the next.
    environment.filters["unbroken"] = lambda cell: re.sub(r" (?!\()", "\N{NO-BREAK SPACE}", cell)
    return environment.get_template(template).render({"version": VERSION, **values})
