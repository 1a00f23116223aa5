"""Models that are more than a language model, such as one with a vision tower.

Their text part is read, pruned and evaluated like any causal language model; the other parts are carried along
unchanged. `Family.inside` lists the model types; in transformers, all of them hold the text part as `language_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from darwinlm.model.families.family import PREFIX, families, is_custom
from darwinlm.model.families.loading import UNUSABLE, check_loaded
from darwinlm.model.families.pruned import register
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.errors import CheckpointError, first_line

PREFIXES = {
    "model.language_model.model.": "model.",
    "model.language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
"""Prefixes of the text part's tensors in checkpoints, and those in the language model alone. Transformers' own is the
third; the others are those of older checkpoints and of models that were loaded from these and saved again."""


def text_type(plain: Mapping[str, object], path: Path) -> str | None:
    """Model type of the text part in a config.json; None for a plain language model and for unsupported models.

    Raises CheckpointError for a model with further parts whose configuration has no text part.
    """
    whole, text = str(plain.get("model_type", "")).removeprefix(PREFIX), plain.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else None
    known = [family.model_type for family in families().values() if whole in family.inside]
    if not known:
        return None
    if not isinstance(kind, str):
        raise CheckpointError(
            f"{path}: a {whole} model has a language model, but text_config doesn't describe one: it has no "
            f"model_type, such as {known[0]}. Fetch the model again"
        )
    return kind if kind.removeprefix(PREFIX) in known else None


def text_config(whole: Any) -> Any:
    """Configuration of the text part as a language model of its own."""
    text = whole.get_text_config(decoder=True)
    text.tie_word_embeddings = whole.tie_word_embeddings
    text.dtype = text.dtype or whole.dtype
    return text


def text_name(name: str) -> str | None:
    """Name of a stored tensor in the language model alone; None for tensors of other parts."""
    for prefix, alone in PREFIXES.items():
        if name.startswith(prefix):
            return alone + name.removeprefix(prefix)
    return name if name.startswith("lm_head.") else None


def load_whole(source: Path, dtype: torch.dtype) -> Any:
    """The whole model in a folder. Raises CheckpointError if it can't be loaded, or isn't complete and finite."""
    try:
        whole, report = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except UNUSABLE as error:
        raise CheckpointError(f"can't load the model in {source}: {first_line(error)}") from error
    check_loaded(whole, report, source)
    return whole


def put_inside(model: Any, source: Path) -> Any:
    """The model in the folder `source` with a smaller language model in place of its own.

    If layers of this differ, the whole is of our class too, which is saved with its modelling file. Raises
    CheckpointError if the original model can't be loaded.
    """
    whole = load_whole(source, next(model.parameters()).dtype)
    whole.model.language_model = model.model
    whole.lm_head = model.lm_head
    whole.config.text_config = model.config
    if is_custom(model.config):
        name = PREFIX + whole.config.model_type.removeprefix(PREFIX)
        register(name)
        whole.config.__class__ = CONFIG_MAPPING[name]
        whole.__class__ = AutoModelForImageTextToText._model_mapping[type(whole.config)]
    whole.tie_weights()
    return whole.eval()


def is_whole(folder: Path) -> bool:
    """Whether a folder holds such a model."""
    path = folder / "config.json"
    return path.is_file() and text_type(read_json(path), path) is not None
