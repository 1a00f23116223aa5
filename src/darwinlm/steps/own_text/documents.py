"""Documents that the dense model wrote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Documents:
    """A folder of documents that the dense model wrote."""

    folder: Path
    digest: str
