"""Pages and cards from templates; a page is one file, readable from a disk, with nothing loaded from elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from darwinlm.report import usage, wording
from darwinlm.report.pictures.colours import DARK, LIGHT
from darwinlm.runtime import amounts, published
from darwinlm.runtime.limits import visible
from darwinlm.runtime.version import VERSION

if TYPE_CHECKING:
    from markupsafe import Markup

    from darwinlm.runtime.charts import Picture


def charts(*pictures: Picture | None) -> list[tuple[str, Markup]]:
    """Title and SVG of every chart of some pictures, whose names differ from those of the page's other pictures."""
    from darwinlm.report.pictures.vector import inline

    return [chart for picture in pictures if picture is not None for chart in inline(picture, picture.name)]


def render(template: str, **values: object) -> str:
    """Fill a template, which also sees `wording`, `usage`, `amounts` and `charts`; in HTML every value is escaped."""
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
    environment.globals |= {
        "wording": wording,
        "usage": usage,
        "amounts": amounts,
        "published": published,
        "charts": charts,
    }
    environment.globals |= {"light": LIGHT, "dark": DARK}
    # A figure and its unit stay on one line; what follows in brackets may go to the next.
    environment.filters["unbroken"] = lambda cell: re.sub(r" (?!\()", "\N{NO-BREAK SPACE}", cell)
    return environment.get_template(template).render({"version": VERSION, **values})
