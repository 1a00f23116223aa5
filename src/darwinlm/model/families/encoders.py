"""What is particular to encoders in a checkpoint: which are read, and what their classes have besides blocks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.model.families.family import Ending, Family, families
from darwinlm.model.families.loading import load_tokenizer
from darwinlm.runtime.errors import ModelError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

POOLER = "pooler"
"""Module of BERT's classes that no embedding is read from."""
SEPARATOR = "segment_separator"
"""Configuration field of ours for the token that ends the first text of a pair; other tools ignore it."""


def check_encoder(family: Family, ending: Ending, plain: JsonObject, path: Path) -> None:
    """Refuse an encoder with a head, and a decoder of a family of encoders. Raises ModelError."""
    if ending == "language" or (ending == "scores" and not family.encoder):
        *first, last = (known.title for known in families().values() if known.encoder)
        raise ModelError(
            f"{path}: encoders such as {family.title} can only be pruned as embedders, without a head, or of "
            f"{', '.join(first)} and {last} as rerankers and classifiers, and "
            f"architectures names {shorten(str(plain.get('architectures')))}: save what AutoModel loads of it, and "
            "give that folder"
        )
    setting = next((name for name in ("is_decoder", "add_cross_attention") if plain.get(name)), None)
    if setting is not None:
        raise ModelError(
            f"{path}: {setting} is true, but of {family.title} only models in which a token sees all others can be "
            "pruned: use another model"
        )


def set_separator(config: PreTrainedConfig, family: Family, ending: Ending, folder: Path) -> None:
    """Note in a configuration which token ends the first text of a pair, if the model numbers the texts.

    A saved model keeps the note, because stages open its folder without a tokenizer. Raises as `load_tokenizer`.
    """
    if not family.segments or ending != "scores" or hasattr(config, SEPARATOR):
        return
    tokenizer = load_tokenizer(folder, config)
    numbers_texts = "token_type_ids" in tokenizer.model_input_names
    setattr(config, SEPARATOR, tokenizer.sep_token_id if numbers_texts else None)
