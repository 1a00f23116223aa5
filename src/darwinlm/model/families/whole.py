"""Models that are more than a language model, such as one with a vision tower.

Their text part is read, pruned and evaluated like any causal language model; the other parts are carried along
unchanged. `Family.inside` lists the model types; in transformers, all of them hold the text part as `language_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from darwinlm.model.families.family import PREFIX, families, is_custom
from darwinlm.model.families.loading import UNUSABLE, check_loaded
from darwinlm.model.families.pruned import register
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PREFIXES = {
    "model.language_model.model.": "model.",
    "model.language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
"""Prefixes of the text part's tensors in checkpoints, and those in the language model on its own. Transformers uses the
third; the others occur in older checkpoints and in models that were loaded from these and saved again."""


def text_type(plain: Mapping[str, object], path: Path) -> str | None:
    """Model type of the text part in a config.json; None for a plain language model and for unsupported models.

    Raises CheckpointError for a model with further parts whose configuration has no text part.
    """
    whole_type, text = str(plain.get("model_type", "")).removeprefix(PREFIX), plain.get("text_config")
    text_types = [family.model_type for family in families().values() if whole_type in family.inside]
    if not text_types:
        return None
    model_type = text.get("model_type") if isinstance(text, dict) else None
    if not isinstance(model_type, str):
        raise CheckpointError(
            f"{path}: a {whole_type} model has a language model, but text_config doesn't describe one: it has no "
            f"model_type, such as {text_types[0]}. Fetch the model again"
        )
    return model_type if model_type.removeprefix(PREFIX) in text_types else None


def text_config(whole_config: PreTrainedConfig) -> PreTrainedConfig:
    """Configuration of the text part as a language model of its own."""
    text = whole_config.get_text_config(decoder=True)
    text.tie_word_embeddings = whole_config.tie_word_embeddings
    text.dtype = text.dtype or whole_config.dtype
    return text


def text_name(name: str) -> str | None:
    """Name that a stored tensor has in the language model; None for tensors of other parts."""
    for prefix, text_prefix in PREFIXES.items():
        if name.startswith(prefix):
            return text_prefix + name.removeprefix(prefix)
    return name if name.startswith("lm_head.") else None


def load_whole(source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The whole model in a folder. Raises CheckpointError if it can't be loaded, or isn't complete and finite."""
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except UNUSABLE as error:
        raise CheckpointError(f"can't load the model in {source}: {first_line(error)}") from error
    check_loaded(model, report, source)
    return model


def put_inside(model: PreTrainedModel, source: Path) -> PreTrainedModel:
    """The model in the folder `source` with a smaller language model in place of its own.

    If its layers differ, the whole model gets our class too, which is saved with its modelling file. Raises
    CheckpointError if the original model can't be loaded.
    """
    whole_model = load_whole(source, next(model.parameters()).dtype)
    whole_model.model.language_model = model.model
    whole_model.lm_head = model.lm_head
    whole_model.config.text_config = model.config
    if is_custom(model.config):
        name = PREFIX + whole_model.config.model_type.removeprefix(PREFIX)
        register(name)
        whole_model.config.__class__ = CONFIG_MAPPING[name]
        whole_model.__class__ = AutoModelForImageTextToText._model_mapping[type(whole_model.config)]
    whole_model.tie_weights()
    return whole_model.eval()


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a model with further parts around its language model."""
    path = folder / "config.json"
    return path.is_file() and text_type(read_json(path), path) is not None
