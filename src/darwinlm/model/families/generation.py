"""How a model's answers end and are sampled: the settings of generation_config.json that we use, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


def generation_of(folder: Path) -> GenerationConfig | None:
    """End tokens, temperature, top-p, top-k and repetition penalty of a model; None if its folder states none.

    Other fields are ignored. Raises CheckpointError, which names the field.
    """
    path = folder / GENERATION
    if not path.is_file():
        return None
    try:
        settings = load_json(path)
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__}, not a mapping")  # noqa: TRY301, TRY004
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({shorten(error)}): remove it or fetch it again") from error
    try:
        taken = Used.model_validate(settings).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors()[0]
        wrong = f"{first['loc'][0]} is {shorten(first['input'])}, and {shorten(first['msg'])}"
        raise CheckpointError(f"{path}: {wrong}: correct or remove it") from error
    if taken.get("temperature") == 0:  # as is usual: the most likely token
        taken["do_sample"] = False
    if not taken.setdefault("do_sample", False):  # transformers warns about settings without an effect
        taken = {name: value for name, value in taken.items() if name not in ("temperature", "top_p", "top_k")}
    if taken.get("top_k") == 0:  # all tokens
        del taken["top_k"]
    return GenerationConfig(**taken)
