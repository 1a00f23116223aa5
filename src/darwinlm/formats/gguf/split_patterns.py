"""How byte-level tokenizers split text into words, and the names of these patterns in llama.cpp."""

from __future__ import annotations

_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHED = _REST.replace("[\\r\\n]*", "[\\r\\n/]*", 1)
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_SIGNED = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
PATTERNS = {
    (rf"{_WORD}|\p{{N}}{{1,3}}|{_REST}",): "llama-bpe",
    (rf"{_WORD}|\p{{N}}|{_REST}",): "qwen2",
    (rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}",): "tekken",
    (rf"{_START}{_UPPER}*{_LOWER}+{_SHORT}|{_START}{_UPPER}+{_LOWER}*{_SHORT}|\p{{N}}{{1,3}}|{_SLASHED}",): "gpt-4o",
    (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _SIGNED): "deepseek-v3",
}
"""Names of llama.cpp for the splitting patterns of byte-level tokenizers, which are applied one after the other."""
MERGED = {"llama-bpe": "dbrx"}
"""Name of the same pattern if words are always merged; `llama-bpe` uses a word that is a token directly."""
WHOLE_WORDS = frozenset({"llama-bpe", "tekken"})
"""Patterns with which llama.cpp uses a word that is a token directly, without merges."""
PLAIN, DIGITS = "gpt-2", "smollm"
"""GPT-2's pattern, and the same with single digits."""
ALIASES = {
    "phi-2": PLAIN,
    "olmo": PLAIN,
    "starcoder": DIGITS,
    "refact": DIGITS,
    "command-r": DIGITS,
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "hunyuan-dense": "deepseek-v3",
}
"""Other names of the same patterns in llama.cpp."""
