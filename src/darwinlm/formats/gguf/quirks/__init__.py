"""What single families need in GGUF files, by the names in their descriptions: `latent.split_heads`.

A transform gets a block's tensor in float32 and the configuration, and returns it rearranged, or several by name. A
key's value follows from a `Reshaper` and a `Layout`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def quirk(name: str) -> Any:
    """The function of this package that a description names."""
    module, _, function = name.partition(".")
    return getattr(import_module(f"darwinlm.formats.gguf.quirks.{module}"), function)
