"""Reasons why a model can't be pruned, read from its configuration.

The fields of a configuration show whether blocks have other parts than one attention and one MLP. Many families use the
same field names, so that the check also covers later models. The reasons are in `refusal.yaml`.
"""

from __future__ import annotations

from collections.abc import Container
from functools import cache
from importlib import resources
from typing import Any

import yaml

LISTS = ("layer_types", "layers_block_type", "block_types")
"""Fields with the kind of every layer."""
EXPERTS = "num_experts"
"""Field by which a reason is one that a description would overcome."""


@cache
def _reasons() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = yaml.safe_load(
        resources.files("darwinlm.families").joinpath("refusal.yaml").read_text(encoding="utf-8")
    )
    return rows


def _holds(row: dict[str, Any], fields: dict[str, Any]) -> bool:
    kinds = next((listed for name in LISTS if (listed := fields.get(name))), ())
    return (
        any(fields.get(name) for name in row.get("fields", ()))
        or any(kind in row.get("layers", ()) for kind in kinds)
        or fields["model_type"] in row.get("types", ())
    )


def why_not(config: Any, known: Container[str]) -> str | None:
    """The reason why a model's family has no description, as a clause; None if only that is missing.

    `known` are model types with a description.
    """
    text = getattr(config, "text_config", None)
    if text is not None:
        return _text_part(text, known)
    fields = config.to_dict()
    row = next((row for row in _reasons() if _holds(row, fields)), None)
    if (row is None or EXPERTS in row.get("fields", ())) and not _is_causal(config):
        return "transformers has no causal language model for it"
    return None if row is None else str(row["reason"])


def _text_part(text: Any, known: Container[str]) -> str:
    more = f"it is more than a language model; its text part has the type '{text.model_type}'"
    if text.model_type in known:
        return f"{more}: save this part separately and use it"
    reason = why_not(text, known)
    return more if reason is None else f"{more}, and {reason}"


def _is_causal(config: Any) -> bool:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
