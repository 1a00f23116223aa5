"""Element types of tensors in GGUF files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Element:
    """An element type: `weights` of a block take `bytes`.

    Attributes:
        error: Largest relative rounding error of a tensor.
        narrow: Type that llama.cpp takes instead for rows that aren't whole blocks.
    """

    weights: int
    bytes: int
    error: float = 0.5
    narrow: str = ""


ELEMENTS = {
    "F32": Element(1, 4, 1e-7),
    "F16": Element(1, 2, 2e-3),
    "BF16": Element(1, 2, 6e-3),
    "Q8_0": Element(32, 34, 0.02),
    "Q6_K": Element(256, 210, 0.06, "Q8_0"),
    "Q5_K": Element(256, 176, 0.1, "Q5_1"),
    "Q5_1": Element(32, 24, 0.1),
    "Q5_0": Element(32, 22, 0.1),
    "Q4_K": Element(256, 144, 0.2, "Q5_0"),
    "Q4_1": Element(32, 20, 0.2),
    "Q4_0": Element(32, 18, 0.2),
    "IQ4_NL": Element(32, 18, 0.2),
    "Q3_K": Element(256, 110, 0.35, "IQ4_NL"),
    "Q2_K": Element(256, 84, 0.5, "IQ4_NL"),
}


def rounding_error(kind: str) -> float:
    """Largest relative rounding error of a tensor; that of the coarsest type if it isn't known."""
    return ELEMENTS[kind].error if kind in ELEMENTS else 0.5
