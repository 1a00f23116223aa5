"""Figures of the GGUF files of a bounded run, and the words that show them."""

from __future__ import annotations

from typing import ClassVar

from darwinlm.runtime.amounts import nats, size
from darwinlm.runtime.figures import Figures, StepFigures
from darwinlm.runtime.shell import word


class QuantisedFile(Figures):
    """One GGUF file of a quantisation; KL(dense ‖ file) is in nats per token, as llama.cpp runs it."""

    quantisation: str
    bytes: int
    kl: float


class BoundedFileFigures(StepFigures):
    """The file that a budget bounds, measured on `tokens`, and the dense `model` quantised to the same bound.

    `dense` is None if no quantisation makes the dense model that small.
    """

    lasting: ClassVar[bool] = False

    model: str
    file: str
    tokens: int
    saved: QuantisedFile
    dense: QuantisedFile | None = None

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Both files."""
        return (("file", self.note()),)

    def note(self) -> str:
        """The file compared with the quantised dense model, and which one to use."""
        saved, dense = self.saved, self.dense
        sentence = (
            f"{self.file} has {size(saved.bytes)} and KL {nats(saved.kl)} on {self.tokens:,} tokens of the evaluation "
            "text in llama.cpp."
        )
        if dense is None:
            return f"{sentence} No type makes the dense model that small."
        quantised = f"the dense model as {dense.quantisation} has {size(dense.bytes)} and KL {nats(dense.kl)}"
        if dense.kl > saved.kl:
            return f"{sentence} It loses less than quantising alone: {quantised}."
        command = f"darwinlm export {word(self.model)} --quant {dense.quantisation} --out model.gguf"
        return f"{sentence} Quantising alone loses less: {quantised}. Use that instead: {command}."
