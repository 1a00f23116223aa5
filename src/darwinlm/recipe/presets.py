"""Presets of the recipe."""

from __future__ import annotations

from typing import Any

PAPER: dict[str, Any] = {
    "units": {"attention": "query_head", "levels": "paper"},
    "database": {"saliency": "output"},
    "text": {"source": "hf:HuggingFaceFW/fineweb-edu", "looking_back": 0},
    "search": {
        "method": "paper",
        "generations": 200,
        "offspring": 16,
        "rounds": [
            {"tokens": 1024, "survivors": 8, "training_tokens": 10_000},
            {"tokens": 2048, "survivors": 4, "training_tokens": 50_000},
            {"tokens": 4096, "survivors": 2, "training_tokens": 100_000},
            {"tokens": 8192, "survivors": 1, "training_tokens": 200_000},
        ],
    },
    "refit": {"tokens": 0},
}
"""The settings of DarwinLM (arXiv 2502.07780). docs/method.md lists them, and what has no setting."""

PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": PAPER}


def completed(given: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """A recipe's tree with the fields of its preset that the user didn't give."""
    filled = dict(given)
    for name, value in preset.items():
        if name not in filled:
            filled[name] = value
        elif isinstance(value, dict) and isinstance(filled[name], dict):
            filled[name] = completed(filled[name], value)
    return filled
