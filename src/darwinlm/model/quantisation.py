"""Quantisations by name, and the groups of columns in which they quantise the rows of a matrix.

Sources: block sizes of ggml (256 for K-quants, 32 for the older types), the default group size of AWQ (arXiv
2306.00978), GPTQ (arXiv 2210.17323) and compressed-tensors (128), and the multiples that 8-bit matrix products on
tensor cores take (16, here 32).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from darwinlm.runtime.limits import suggestion

PACKAGE, LLAMA_CPP = "gguf", "llama.cpp"
"""What computes a quantisation: the package `gguf`, or llama.cpp's quantiser."""


class Quantisation(NamedTuple):
    """A quantisation.

    Attributes:
        columns: Columns of a group; 1 without groups.
        element: Element type of most tensors of the GGUF file; empty for other formats.
        by: What computes it for our exports; empty if they don't have it.
    """

    columns: int
    element: str = ""
    by: str = ""


UNCHOSEN = "gguf"
"""A GGUF file whose type isn't chosen yet."""
SMALLEST = "q3_k_m"
"""Type of a bounded file whose model doesn't fit with it or a larger one. At 88 MB, SmolLM2-135M loses 0.25 nats with
it and a little pruning, 0.51 with Q4_K_M and more pruning, and 0.43 with Q2_K and none (docs/notebook/quality.md)."""
QUANTISATIONS: dict[str, Quantisation] = {
    "q2_k": Quantisation(256, "Q2_K", LLAMA_CPP),
    "q3_k_s": Quantisation(256, "Q3_K"),
    "q3_k_m": Quantisation(256, "Q3_K", LLAMA_CPP),
    "q3_k_l": Quantisation(256, "Q3_K"),
    "q4_k_s": Quantisation(256, "Q4_K", LLAMA_CPP),
    "q4_k_m": Quantisation(256, "Q4_K", LLAMA_CPP),
    "q5_k_s": Quantisation(256, "Q5_K"),
    "q5_k_m": Quantisation(256, "Q5_K", LLAMA_CPP),
    "q6_k": Quantisation(256, "Q6_K", LLAMA_CPP),
    "iq3_s": Quantisation(256, "IQ3_S"),
    "iq3_m": Quantisation(256, "IQ3_S"),
    "iq4_xs": Quantisation(256, "IQ4_XS"),
    "iq4_nl": Quantisation(32, "IQ4_NL"),
    "q4_0": Quantisation(32, "Q4_0", PACKAGE),
    "q5_0": Quantisation(32, "Q5_0"),
    "q8_0": Quantisation(32, "Q8_0", PACKAGE),
    "bf16": Quantisation(1, "BF16", PACKAGE),
    "f16": Quantisation(1, "F16", PACKAGE),
    "f32": Quantisation(1, "F32", PACKAGE),
    UNCHOSEN: Quantisation(32, "any"),
    **dict.fromkeys(("awq", "gptq", "w4a16", "w8a16", "fp8_block"), Quantisation(128)),
    **dict.fromkeys(("mxfp4", "nvfp4", "fp8", "int8", "w8a8"), Quantisation(32)),
}
ALIKE = {
    2: "q2_k in GGUF files",
    3: "q3_k_m in GGUF files",
    4: "q4_k_m or q4_0 in GGUF files, and w4a16, awq, gptq or nvfp4 elsewhere",
    5: "q5_k_m in GGUF files",
    6: "q6_k in GGUF files",
    8: "q8_0 in GGUF files, and int8, w8a16 or fp8 elsewhere",
}
"""Quantisations by their bits, for names such as int4 and 4bit."""
WRITTEN = tuple(name for name, quantisation in QUANTISATIONS.items() if quantisation.by)
"""Quantisations of our GGUF files; llama.cpp has these names in capitals."""


def in_gguf(name: str | None) -> bool:
    """Whether a quantisation is one of GGUF files."""
    return name is not None and QUANTISATIONS[name].element != ""


def known_quantisation(name: str) -> str:
    """A name as in `QUANTISATIONS`: `Q4_K_M` and `q4-k-m` are `q4_k_m`. Raises ValueError, which suggests others."""
    plain = name.strip().lower().replace("-", "_")
    if plain in QUANTISATIONS:
        return plain
    bits = next((bits for bits in ALIKE if re.fullmatch(rf"(int|i|nf|fp|q|w)?[_]?{bits}[_]?(bits?|int)?", plain)), None)
    if bits is not None:
        raise ValueError(f"there is no quantisation '{name[:40]}': {bits} bits are {ALIKE[bits]}")
    hint = suggestion(plain, QUANTISATIONS, f"known are {', '.join(QUANTISATIONS)}")
    raise ValueError(f"there is no quantisation '{name[:40]}': {hint}")
