"""Openings: the last tokens of a sequence begin short texts of their own, each read as if nothing preceded it.

Models attend to the first token of a text, whatever it is, and turn it into a sink. A sequence shows this for one token
only. Where texts can begin with any token, a pruned model may lose the sinks of some, and then about one nat per token
of each text that begins with one of them (notebook, "Sinks lost by a short search"). Openings show several first tokens
in each sequence. They are marked as items (`model/walk/items.py`), so the model's attention keeps them apart.

Letters: B sequences, T tokens in a sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from darwinlm.steps.text.packing import added_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from darwinlm.model.families.family import Family

OPENING_TOKENS = 8
"""Tokens of an opening."""


def are_useful(family: Family, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether texts may begin with any token, and the model's attention makes a sink of it.

    They begin with bos if the tokenizer adds it; gpt-oss learned its sinks; and mixers such as linear attention carry a
    state from one text to the next, so that texts in one sequence aren't kept apart.
    """
    return added_bos(tokenizer) is None and not family.attention.sinks and family.mixer is None


def with_openings(tokens: torch.Tensor, share: float) -> torch.Tensor:
    """Sequences that end with openings, int64 [B, T] -> [B, T].

    Their number is the one whose tokens come closest to `share` of all, from 0 to 0.5; in short sequences it is 0.
    """
    count = round(share * tokens.shape[1] / OPENING_TOKENS)
    if count == 0:
        return tokens
    marked = tokens.clone()
    first = [0, *range(tokens.shape[1] - count * OPENING_TOKENS, tokens.shape[1], OPENING_TOKENS)]
    marked[:, first] = -1 - marked[:, first]
    return marked
