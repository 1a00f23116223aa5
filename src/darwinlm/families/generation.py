"""How a model's answers end and are sampled: the settings of generation_config.json that we use, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from darwinlm.families.files import GENERATION
from darwinlm.families.loading import TOKENS
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import load_json, shorten

CHECKED = {
    "temperature": TemperatureLogitsWarper,
    "top_p": TopPLogitsWarper,
    "top_k": TopKLogitsWarper,
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
}
"""Sampling settings, and what raises an error on values that can't be."""
NUMBERS = ("bos_token_id", "eos_token_id", "pad_token_id")
NO_CHANGE = frozenset(
    {*NUMBERS, *CHECKED, "do_sample", "max_length", "max_new_tokens", "use_cache", "transformers_version"}
)
"""Fields that are used, or whose value changes no answer of ours."""


def read_generation(folder: Path) -> dict[str, Any]:
    """A model's generation settings; empty if its folder has none. Raises CheckpointError."""
    path = folder / GENERATION
    if not path.is_file():
        return {}
    try:
        settings = load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({shorten(error)}): remove it or fetch it again") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} holds a {type(settings).__name__}, not a mapping: remove it or fetch it again")
    return settings


def generation_of(settings: Mapping[str, Any], where: Path | str) -> GenerationConfig:
    """End tokens, temperature, top-p, top-k and repetition penalty from a model's settings. Other fields are ignored.

    Raises CheckpointError, which names the field.
    """
    taken: dict[str, Any] = {"do_sample": settings.get("do_sample") or False}
    if not isinstance(taken["do_sample"], bool):
        raise _wrong(where, "do_sample", taken["do_sample"], "it is true or false")
    for name in NUMBERS:
        value = settings.get(name)
        many = value if isinstance(value, list) and name == "eos_token_id" else [] if value is None else [value]
        if not all(type(each) is int and 0 <= each < TOKENS for each in many):
            raise _wrong(where, name, value, f"a token is a whole number from 0 to {TOKENS - 1:,}")
        taken |= {name: value} if many else {}
    found = {name: value for name in CHECKED if (value := settings.get(name)) is not None}
    if found.get("temperature") == 0:  # as is usual: the most likely token
        taken["do_sample"] = False
    for name, value in found.items():
        if value == 0 and name in ("temperature", "top_k") and not isinstance(value, bool):  # 0 stands for all tokens
            continue
        try:
            CHECKED[name](None if isinstance(value, bool) else value)
        except (ValueError, TypeError) as error:
            raise _wrong(where, name, value, str(error)) from error
        if taken["do_sample"] or name == "repetition_penalty":  # transformers warns about settings without an effect
            taken[name] = value
    return GenerationConfig(**taken)


def unused(settings: Mapping[str, Any]) -> list[str]:
    """Fields of a model's settings that would change its answers and aren't used."""
    default = GenerationConfig().to_dict()
    return sorted(
        name
        for name, value in settings.items()
        if name not in NO_CHANGE and not name.startswith("_") and value is not None and value != default.get(name)
    )


def _wrong(where: Path | str, name: str, value: Any, reason: str) -> CheckpointError:
    place = Path(where) / GENERATION if isinstance(where, Path) else f"{GENERATION} of {where}"
    return CheckpointError(f"{place}: {name} is {shorten(value)}, and {shorten(reason)}: correct or remove it")
