"""Values as JSON and YAML have them."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]
"""An object of JSON, or a mapping of YAML. Its values have the types that their reader checks."""
