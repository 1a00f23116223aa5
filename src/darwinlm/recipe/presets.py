"""Presets of the recipe: the paper's settings, and amounts of text."""

from __future__ import annotations

from darwinlm.runtime.json_values import JsonObject

PAPER: JsonObject = {
    "units": {"attention": "query_head", "levels": "paper"},
    "database": {"metric": "output"},
    "text": {"source": "hf:HuggingFaceFW/fineweb-edu", "looking_back": 0, "openings": 0},
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

QUICK: JsonObject = {
    "text": {"calibration_tokens": 16384, "evaluation_tokens": 4096},
    "search": {"generations": 3, "rounds": [{"tokens": 1024, "survivors": 2}, {"tokens": 4096, "survivors": 1}]},
    "refit": {"tokens": 16384},
}
"""About two fifths of the default work."""

THOROUGH: JsonObject = {
    "text": {"calibration_tokens": 131_072, "evaluation_tokens": 32768},
    "search": {"generations": 40, "rounds": [{"tokens": 4096, "survivors": 2}, {"tokens": 16384, "survivors": 1}]},
    "refit": {"tokens": 65536},
}
"""About four times the default work."""

AMOUNTS = ("thorough", "default", "quick")
"""Presets among which a time limit chooses, the largest amounts first."""

PRESETS: dict[str, JsonObject] = {"default": {}, "quick": QUICK, "thorough": THOROUGH, "paper": PAPER}


def completed(tree: JsonObject, preset: JsonObject) -> JsonObject:
    """A recipe's tree with the fields of its preset that the user didn't give."""
    filled = dict(tree)
    for name, value in preset.items():
        if name not in filled:
            filled[name] = value
        elif isinstance(value, dict) and isinstance(filled[name], dict):
            filled[name] = completed(filled[name], value)
    return filled
