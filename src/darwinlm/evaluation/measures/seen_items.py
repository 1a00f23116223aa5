"""Items of a measure that occur in the text of a run: scores on them say nothing about other items.

An item occurs if the whole of it stands in the text, word for word, or if more than half of its tokens lie in passages
of the text. Items of fewer than five words occur by chance, and aren't looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.evaluation.seen_text import HELD_OUT
from darwinlm.model.walk.items import ids
from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.packing import token_ids
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.shared_passages import PASSAGE, covered, passages_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEWEST_WORDS = 5
MOSTLY = 0.5
"""Share of an item's tokens that lie in passages of the text, from which it occurs there."""
SHOWN = 5
"""Items that the message names."""


def check_unseen(
    measures: Sequence[Measure], text: Mapping[str, TokenSequences], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse measures with items in the text of a run, by purpose; its evaluation text doesn't count.

    Raises DataError, which names the items.
    """
    parts = [part for purpose, part in text.items() if purpose != HELD_OUT]
    items = {measure.name: measure.texts() for measure in measures}
    if not parts or not any(items.values()):
        return
    joined = "\n".join(_plain(str(tokenizer.decode(ids(part.tokens).flatten().tolist()))) for part in parts)
    known = passages_of(parts)
    for name, texts in items.items():
        found = [
            number
            for number, text in enumerate(texts, 1)
            if (len(text.split()) >= FEWEST_WORDS and _plain(text) in joined)
            or _mostly(token_ids(tokenizer, [text])[0], known)
        ]
        if found:
            numbers = ", ".join(map(str, found[:SHOWN])) + (", ..." if len(found) > SHOWN else "")
            raise DataError(
                f"{name}: {len(found)} of {len(texts)} items occur in the text of the run (items {numbers}), so their "
                "scores would be too good: remove them from the text, or from the measure"
            )


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _mostly(tokens: list[int], known: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> bool:
    if len(tokens) < PASSAGE:
        return False
    return float(np.mean(covered(np.asarray(tokens, np.int64), known))) > MOSTLY
