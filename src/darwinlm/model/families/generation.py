"""How a model's answers end and are sampled: the settings of generation_config.json, checked.

Some are used here; a smaller model also carries those that any model can follow. The others are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import GenerationConfig

from darwinlm.model.families.files import GENERATION
from darwinlm.model.families.loading import TOKENS
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import load_json, shorten

Token = Annotated[int, Field(ge=0, lt=TOKENS)]


class Used(BaseModel):
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


class Carried(Used):
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
    stated = _stated(folder)
    return None if stated is None else _config({name: stated[name] for name in Used.model_fields if name in stated})


def carried_generation(folder: Path) -> GenerationConfig | None:
    """The settings that a smaller model gets; None if the folder states none. Raises as `generation_of`."""
    stated = _stated(folder)
    return None if stated is None else _config(stated)


def left_behind(folder: Path) -> tuple[str, ...]:
    """Names of the settings that a smaller model doesn't get, without those that have no effect."""
    others = (
        item for item in (_read(folder) or {}).items() if item[0] not in (*Carried.model_fields, *OF_TRANSFORMERS)
    )
    return tuple(name for name, value in others if value not in (None, False, WITHOUT_EFFECT.get(name)))


def renumbered_words(settings: dict[str, Any], new: Mapping[int, int]) -> None:
    """Give settings of words that aren't written the new numbers of tokens; those of removed tokens go."""
    for name in SUPPRESSED:
        if settings.get(name):
            settings[name] = [new[old] for old in settings[name] if old in new] or None
    if settings.get("bad_words_ids"):
        words = [[new.get(old) for old in word] for word in settings["bad_words_ids"]]
        settings["bad_words_ids"] = [word for word in words if None not in word] or None


def _read(folder: Path) -> dict[str, Any] | None:
    """The fields of the file; None without it. Raises CheckpointError."""
    path = folder / GENERATION
    if not path.is_file():
        return None
    try:
        settings = load_json(path)
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__}, not a mapping")  # noqa: TRY301, TRY004
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({shorten(error)}): remove it or fetch it again") from error
    return settings


def _stated(folder: Path) -> dict[str, Any] | None:
    """The settings that a smaller model gets, as the file has them. Raises CheckpointError."""
    if (settings := _read(folder)) is None:
        return None
    try:
        return Carried.model_validate(settings).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{first['loc'][0]} is {shorten(first['input'])}, and {shorten(first['msg'])}"
        raise CheckpointError(f"{folder / GENERATION}: {wrong}: correct or remove it") from error


def _config(settings: dict[str, Any]) -> GenerationConfig:
    taken = dict(settings)
    if taken.get("temperature") == 0:  # as is usual: the most likely token
        taken["do_sample"] = False
    if not taken.setdefault("do_sample", False):  # transformers warns about settings without an effect
        taken = {name: value for name, value in taken.items() if name not in SAMPLING}
    if taken.get("top_k") == 0:  # all tokens
        del taken["top_k"]
    return GenerationConfig(**taken)
