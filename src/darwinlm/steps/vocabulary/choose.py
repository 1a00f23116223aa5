"""The tokens to keep: those that shorten the text most, each with the tokens that it is merged from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set

MULTIPLE = 64
"""The number of kept tokens is a multiple of this, which suits matrix products."""


def kept_size(keep: float, tokens: int) -> int:
    """Number of tokens to keep: a share of all if at most 1, else a number; rounded up to a multiple, at most all."""
    count = keep * tokens if keep <= 1 else keep
    return min(-int(-count // MULTIPLE) * MULTIPLE, tokens)


def choose_tokens(
    uses: Mapping[int, float], always: Set[int], paths: Mapping[int, Sequence[int] | None], size: int
) -> set[int]:
    """Choose the tokens that the text is merged to most often, closed under their paths.

    A merge makes a text one token shorter. So a token is worth as many tokens as there are merges to it in the text,
    including those on the path of longer tokens. Tokens without uses follow in the order of their numbers, which for
    trained tokenizers is that of their use in the tokenizer's own training text.

    Args:
        uses: Number of uses of each token.
        always: Tokens that are kept in any case; closed under their paths.
        paths: For every token the tokens that it is merged from, itself included; None if no merge gives it.
        size: Number of tokens to keep, at least that of `always`.

    Returns:
        Exactly `size` tokens, or all if there are fewer.
    """
    merges: dict[int, float] = defaultdict(float)
    for token, count in uses.items():
        for part in paths[token] or (token,):
            merges[part] += count
    order = sorted(paths, key=lambda token: (paths[token] is None, -merges[token], token))
    chosen = set(always)
    size_before = -1
    # A token that didn't fit may fit later, when tokens on its path were kept for others.
    while size_before < len(chosen) < size:
        size_before = len(chosen)
        for token in order:
            added = {token, *(paths[token] or ())} - chosen
            if len(chosen) + len(added) <= size:
                chosen |= added
    return chosen
