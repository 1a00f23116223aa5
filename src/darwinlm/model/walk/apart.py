"""What keeps the items of a sequence apart, so that a model reads each as if it were alone.

Models in which a token looks back find it in the positions, which begin anew with each item. Those in which a token
sees all others get masks.

Letters: b sequences, t tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxtyping import Int64
from torch import Tensor
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    packed_sequence_mask_function,
)

from darwinlm.model.families.encoders import SEPARATOR
from darwinlm.model.families.family import family_of
from darwinlm.model.walk import items

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MASKS = {
    "full_attention": create_bidirectional_mask,
    "sliding_attention": create_bidirectional_sliding_window_mask,
}
"""What makes the mask of each type of layer of a bidirectional model."""


def apart(model: PreTrainedModel, tokens: Int64[Tensor, "b t"]) -> dict[str, object]:
    """Arguments of a model's call for sequences of items, on the model's device."""
    family, positions = family_of(model.config), items.positions(tokens)
    if family.before_positions is not None:
        positions = positions + int(getattr(model.config, family.before_positions)) + 1
    places: dict[str, object] = {"position_ids": positions}
    if not family.bidirectional:
        return places
    separator = getattr(model.config, SEPARATOR, None)
    if family.segments and separator is not None:
        places["token_type_ids"] = items.segments(tokens, int(separator))
    item = (tokens < 0).cumsum(1)
    shape = item.new_empty((*item.shape, 0), dtype=model.dtype)  # of which only the shape and the type are read
    inside = packed_sequence_mask_function(item)

    def mask(kind: str) -> object:
        return MASKS[kind](config=model.config, inputs_embeds=shape, attention_mask=None, and_mask_function=inside)

    has_types = getattr(model.config, "layer_types", None) is not None
    return {**places, "attention_mask": {kind: mask(kind) for kind in MASKS} if has_types else mask("full_attention")}
