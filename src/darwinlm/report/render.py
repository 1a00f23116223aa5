"""HTML pages from templates: one file each, readable from a disk, with nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from darwinlm import __version__


def render(template: str, view: dict[str, Any], *scripts: str) -> str:
    """Fill a template; every value is escaped.

    The page runs `scripts` and no others, by its own security policy.
    """
    environment = Environment(
        loader=FunctionLoader(_file), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["unbroken"] = _unbroken
    own = []
    for text in map(_file, scripts):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        own.append({"text": Markup(text), "hash": f"sha256-{digest}"})  # noqa: S704
    return environment.get_template(template).render(view, scripts=own, version=view.get("version", __version__))


def _file(name: str) -> str:
    return resources.files("darwinlm.report").joinpath(name).read_text(encoding="utf-8")


def _unbroken(cell: str) -> str:
    """Keep a figure and its unit on one line; what follows in brackets may go to the next."""
    return cell.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}(", " (")
