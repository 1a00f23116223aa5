"""Quantisations by name, and the groups of columns in which they quantise the rows of a matrix.

Sources: block sizes of ggml (256 for K-quants, 32 for the older types), the default group size of AWQ (arXiv
2306.00978), GPTQ (arXiv 2210.17323) and compressed-tensors (128), and the multiples that 8-bit matrix products on
tensor cores take (16, here 32).
"""

from __future__ import annotations

import difflib

UNCHOSEN = "gguf"
"""A GGUF file whose type isn't chosen yet."""
SMALLEST = "q3_k_m"
"""Type of a bounded file whose model doesn't fit with it or a larger one. At 88 MB, SmolLM2-135M loses 0.25 nats with
it and a little pruning, 0.51 with Q4_K_M and more pruning, and 0.43 with Q2_K and none (docs/notebook/quality.md)."""
GGUF: dict[str, int] = {
    **dict.fromkeys(("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k"), 256),
    **dict.fromkeys(("iq3_s", "iq3_m", "iq4_xs"), 256),
    **dict.fromkeys((UNCHOSEN, "q8_0", "q5_0", "q4_0", "iq4_nl"), 32),
}
"""Columns of a group in the types of GGUF files."""
GROUPS: dict[str, int] = {
    **GGUF,
    **dict.fromkeys(("awq", "gptq", "w4a16", "w8a16", "fp8_block"), 128),
    **dict.fromkeys(("mxfp4", "nvfp4", "fp8", "int8", "w8a8"), 32),
}
"""Columns of a group, by the name of the quantisation."""


def in_gguf(name: str | None) -> bool:
    """Whether a quantisation, as in `GROUPS`, is one of GGUF files."""
    return name in GGUF


def known_quantisation(name: str) -> str:
    """A name as in `GROUPS`: `Q4_K_M` and `q4-k-m` are `q4_k_m`. Raises ValueError, which suggests others."""
    plain = name.strip().lower().replace("-", "_")
    if plain in GROUPS:
        return plain
    near = difflib.get_close_matches(plain, GROUPS, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(GROUPS)}"
    raise ValueError(f"there is no quantisation '{name[:40]}': {hint}")
