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
    taken: dict[str, Any] = {}
    for name in NUMBERS:
        value = settings.get(name)
        many = value if isinstance(value, list) and name == "eos_token_id" else [] if value is None else [value]
        if not all(type(each) is int and 0 <= each < TOKENS for each in many):
            raise _wrong(where, name, value, f"a token is a whole number from 0 to {TOKENS - 1:,}")
        if many:
            taken[name] = value
    sample = settings.get("do_sample", False)
    if not isinstance(sample, bool | None):
        raise _wrong(where, "do_sample", sample, "it is true or false")
    taken["do_sample"] = bool(sample)
    for name, check in CHECKED.items():
        value = settings.get(name)
        if value is None or (name == "top_k" and value == 0 and not isinstance(value, bool)):  # 0 stands for all tokens
            continue
        if isinstance(value, bool):
            raise _wrong(where, name, value, "it is a number")
        if name == "temperature" and value == 0:
            taken["do_sample"] = False  # as is usual: the most likely token
            continue
        try:
            check(value)
        except (ValueError, TypeError) as error:
            raise _wrong(where, name, value, str(error)) from error
        taken[name] = value
    if not taken["do_sample"]:  # transformers warns about settings without an effect
        taken = {name: value for name, value in taken.items() if name not in ("temperature", "top_p", "top_k")}
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
