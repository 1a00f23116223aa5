"""Names of models and texts as they may be published: without the folders of somebody's disk."""

from __future__ import annotations

import re
from collections.abc import Mapping

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def short_source(source: str | None) -> str:
    """Name a text without telling where it lies on someone's disk: those of the hub whole, files by their name."""
    if not source:
        return "unnamed"
    if "," in source:
        return " and ".join(map(short_source, source.split(",")))
    if source == "self":
        return "text that the dense model wrote"
    if source.startswith("hf:"):
        return source
    return _without_folder(source)


def short_model(model: str) -> str:
    """Name a model: a hub id whole, folders and files by their name."""
    return model if hub_id(model.partition("@")[0]) else _without_folder(model)


MODEL, FILES = "model", ("source", "text", "folder")
"""The setting that names a model, and those that name files or folders; texts may be several."""


def without_folders(recipe: Mapping[str, object]) -> dict[str, object]:
    """A recipe with files named without the folders that they lie in: pages and models are published."""
    short: dict[str, object] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            short[name] = without_folders(value)
        elif isinstance(value, str) and name == MODEL:
            short[name] = short_model(value)
        elif isinstance(value, str) and name in FILES:
            short[name] = ",".join(map(_without_folder, value.split(",")))
        else:
            short[name] = value
    return short


def _without_folder(source: str) -> str:
    return source if source.startswith("hf:") else re.split(r"[/\\]", source.rstrip("/\\"))[-1] or source


def hub_id(source: str | None) -> str | None:
    """Give back `owner/name` if the source looks like one, and None for paths and files."""
    if source and _HUB_ID.fullmatch(source) and not source.lower().endswith(".gguf"):
        return source
    return None
