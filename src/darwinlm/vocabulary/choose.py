"""The tokens to keep: those of the text in order of use, each with the tokens that it is merged from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Set

MULTIPLE = 64
"""The number of kept tokens is a multiple of this, which suits matrix products."""


def kept_size(wanted: float, tokens: int) -> int:
    """Number of tokens to keep.

    Args:
        wanted: Share of the tokens if at most 1, else their number.
        tokens: Number of tokens of the whole vocabulary.

    Returns:
        The number rounded up to a multiple, at most `tokens`.
    """
    count = wanted * tokens if wanted <= 1 else wanted
    return min(-int(-count // MULTIPLE) * MULTIPLE, tokens)


def choose_tokens(
    uses: Mapping[int, int],
    always: Set[int],
    tokens: Iterable[int],
    size: int,
    path: Callable[[int], Collection[int] | None],
) -> set[int]:
    """Choose the tokens with the most uses, closed under their paths.

    Tokens without uses follow in the order of their numbers, which for trained tokenizers is the order of use in the
    tokenizer's own training text.

    Args:
        uses: Number of uses of each token in the text.
        always: Tokens that are kept in any case; closed under their paths.
        tokens: All tokens.
        size: Number of tokens to keep, at least that of `always`.
        path: The tokens that a token is merged from, itself included; None if no merge gives it.

    Returns:
        Exactly `size` tokens, or all if there are fewer.
    """
    kept = set(always)
    paths = {token: path(token) for token in tokens}
    order = sorted(paths, key=lambda token: (paths[token] is None, -uses.get(token, 0), token))
    before = -1
    # A token that didn't fit may fit later, when tokens on its path were kept for others.
    while before < len(kept) < size:
        before = len(kept)
        for token in order:
            added = {token, *(paths[token] or ())} - kept
            if len(kept) + len(added) <= size:
                kept |= added
    return kept
