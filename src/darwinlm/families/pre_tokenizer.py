"""How byte-level tokenizers split text before they merge, under the names that GGUF files have for it."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, pre_tokenizers

from darwinlm.errors import CheckpointError

_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHED = _REST.replace("[\\r\\n]*", "[\\r\\n/]*", 1)
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
    rf"{_WORD}|\p{{N}}|{_REST}": "qwen2",
    rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}": "tekken",
    rf"{_START}{_UPPER}*{_LOWER}+{_SHORT}|{_START}{_UPPER}+{_LOWER}*{_SHORT}|\p{{N}}{{1,3}}|{_SLASHED}": "gpt-4o",
}
"""Names under which llama.cpp knows the splitting patterns of byte-level tokenizers."""
MERGED = {"llama-bpe": "dbrx"}
"""The name of the same pattern where words are always merged; `llama-bpe` takes a word that is one token as it is."""
WHOLE_WORDS = frozenset({"llama-bpe", "tekken"})
"""Splittings with which llama.cpp takes a word that is one token as it is, whatever merges lead to it."""
PLAIN, DIGITS = "gpt-2", "smollm"
"""GPT-2's own pattern, and the same after every digit was set apart."""
ALIASES = {
    "phi-2": PLAIN,
    "olmo": PLAIN,
    "starcoder": DIGITS,
    "refact": DIGITS,
    "command-r": DIGITS,
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
}
"""Further names of the same splittings in llama.cpp."""


def split_as_named(tokenizer: Any, name: str | None) -> None:
    """Let a byte-level tokenizer split text as a GGUF file names it: transformers reads the name and doesn't use it.

    Args:
        tokenizer: Tokenizer that transformers built from a GGUF file; changed in place.
        name: The file's `tokenizer.ggml.pre`.

    Raises:
        CheckpointError: The file names none, or one that isn't known here.
    """
    known = ALIASES.get(str(name), str(name))
    regexes = {other: regex for regex, other in PATTERNS.items()}
    regexes |= {other: regexes[first] for first, other in MERGED.items()}
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with_regex = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps: list[pre_tokenizers.PreTokenizer]
    if known == PLAIN:
        steps = [with_regex]
    elif known == DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True), with_regex]
    elif known in regexes:
        steps = [pre_tokenizers.Split(Regex(regexes[known]), "isolated"), bytes_only]
    else:
        names = sorted({PLAIN, DIGITS, *regexes, *ALIASES})
        raise CheckpointError(
            f"the file doesn't say how its tokenizer splits text (tokenizer.ggml.pre is {name!r}; known are "
            f"{', '.join(names)}): give the model's original folder or hub id"
        )
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.model.ignore_merges = known in WHOLE_WORDS
