"""How a model's answers end and are sampled: the settings of generation_config.json, checked.

Some are used here; a smaller model also carries those that any model can follow. The others are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from transformers import GenerationConfig

from darwinlm.model.families.files import GENERATION
from darwinlm.model.families.loading import TOKENS
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import load_json, shorten

Token = Annotated[int, Field(ge=0, lt=TOKENS)]


class UsedSettings(BaseModel):
    """The settings that are used; others are ignored."""

    model_config = ConfigDict(strict=True)

    do_sample: bool | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, gt=0)
    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | None = None


class CarriedSettings(UsedSettings):
    """The settings that a smaller model gets: the used ones, and others that depend on logits and tokens alone."""

    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, ge=0, le=1)
    epsilon_cutoff: float | None = Field(None, ge=0, lt=1)
    eta_cutoff: float | None = Field(None, ge=0, lt=1)
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    max_new_tokens: int | None = Field(None, gt=0)
    min_new_tokens: int | None = Field(None, ge=0)
    suppress_tokens: list[Token] | None = None
    begin_suppress_tokens: list[Token] | None = None
    bad_words_ids: list[list[Token]] | None = None
    stop_strings: str | list[str] | None = None
    renormalize_logits: bool | None = None


SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that only have an effect on sampled answers."""
SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
"""Settings that are lists of tokens that aren't written."""
OF_TRANSFORMERS = ("transformers_version", "_from_model_config", "use_cache", "return_dict_in_generate")
"""Fields of the file that say nothing about answers."""

WITHOUT_EFFECT = {
    "max_length": 20,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "length_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
}
"""Defaults of transformers other than none."""


def generation_of(folder: Path) -> GenerationConfig | None:
    """End tokens, temperature, top-p, top-k and repetition penalty of a model; None if its folder states none.

    Other fields are ignored. Raises CheckpointError, which names the field.
    """
    settings = _carried_settings(folder)
    if settings is None:
        return None
    return _generation_config({name: settings[name] for name in UsedSettings.model_fields if name in settings})


def carried_generation(folder: Path) -> GenerationConfig | None:
    """The settings that a smaller model gets; None if the folder states none. Raises as `generation_of`."""
    settings = _carried_settings(folder)
    return None if settings is None else _generation_config(settings)


def left_behind(folder: Path) -> tuple[str, ...]:
    """Names of the settings that have an effect and that a smaller model doesn't get. Raises CheckpointError."""
    names = []
    for name, value in (_read(folder) or {}).items():
        carried = name in CarriedSettings.model_fields or name in OF_TRANSFORMERS
        if not carried and value not in (None, False, WITHOUT_EFFECT.get(name)):
            names.append(name)
    return tuple(names)


def renumber_words(settings: JsonObject, new_numbers: Mapping[int, int]) -> None:
    """Give the settings of suppressed words the new numbers of tokens. Words with a removed token are left out."""
    for name in SUPPRESSED:
        if settings.get(name):
            settings[name] = [new_numbers[old] for old in settings[name] if old in new_numbers] or None
    if settings.get("bad_words_ids"):
        words = [[new_numbers.get(old) for old in word] for word in settings["bad_words_ids"]]
        settings["bad_words_ids"] = [word for word in words if None not in word] or None


def _read(folder: Path) -> dict[str, JsonValue] | None:
    """The fields of the file; None without it. Raises CheckpointError."""
    path = folder / GENERATION
    if not path.is_file():
        return None
    try:
        settings: JsonValue = load_json(path)
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__}, not a mapping")  # noqa: TRY301, TRY004
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({shorten(error)}): remove it or fetch it again") from error
    return settings


def _carried_settings(folder: Path) -> dict[str, JsonValue] | None:
    """The settings that a smaller model gets, as the file has them. Raises CheckpointError."""
    settings = _read(folder)
    if settings is None:
        return None
    try:
        return CarriedSettings.model_validate(settings).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{first['loc'][0]} is {shorten(first['input'])}, and {shorten(first['msg'])}"
        raise CheckpointError(f"{folder / GENERATION}: {wrong}: correct or remove it") from error


def _generation_config(carried: Mapping[str, JsonValue]) -> GenerationConfig:
    settings = dict(carried)
    if settings.get("temperature") == 0:  # as is usual: the most likely token
        settings["do_sample"] = False
    if not settings.setdefault("do_sample", False):  # transformers warns about settings without an effect
        settings = {name: value for name, value in settings.items() if name not in SAMPLING}
    if settings.get("top_k") == 0:  # all tokens
        del settings["top_k"]
    return GenerationConfig(**settings)
