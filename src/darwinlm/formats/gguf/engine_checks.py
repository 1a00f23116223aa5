"""Comparison of a written file in llama.cpp with its model: on logits, or on what a model that reads gives.

Letters: t tokens, v vocabulary, i texts, c outputs of each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from darwinlm.formats.gguf.engine import POOLING
from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.formats.inputs import added_tokens
from darwinlm.formats.logits_check import TEXT, Comparison, ExportReport, compare_logits, compare_outputs, exact_logits
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.model.walk import items
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.errors import EngineError, ExportError

if TYPE_CHECKING:
    from darwinlm.formats.gguf.pooled_outputs import Reading
    from darwinlm.formats.inputs import Inputs
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.objective.item_objective import ItemObjective

ENGINE_ERROR = {"f32": 2e-3, "f16": 2e-2, "bf16": 0.1}
"""Tolerance for llama.cpp's arithmetic, which rounds activations to the type of the weights, or to 8 bits."""
ROUNDED = 1.3
"""The same for a quantised file, whose tensors are compared one by one; unrelated logits differ by 1.4."""
AGAIN = "If the model comes from a GGUF file, pass it as --tokenizer-from F.gguf"


class EngineCheck(ABC):
    """A comparison of files with one model; its own outputs are computed once.

    Attributes:
        engine: Name of the engine.
        checkpoint: The model.
        copied: Whether the tokenizer was copied from another file, so that it may differ.
        report: Gets the comparisons.
    """

    engine = LLAMA_CPP

    def __init__(self, checkpoint: Checkpoint, report: ExportReport, *, copied: bool) -> None:
        self.checkpoint, self.report, self.copied = checkpoint, report, copied

    def __call__(self, path: Path, quantisation: str) -> None:
        """Compare a file whose weights are of this type. Raises ExportError if it differs."""
        try:
            threads = torch.get_num_threads()
            with EngineProcess(self.engine, path, threads=threads, context=self.longest(), exact=True) as engine:
                outputs = self.computed(engine)
                self.compare_tokens(engine)
                self.report.details["engine"] = engine.version()
        except EngineError as error:
            raise ExportError(f"the export fails its check: {error}; nothing was written") from error
        name, tolerance = f"its {quantisation} file in llama.cpp", ENGINE_ERROR.get(quantisation, ROUNDED)
        self.report.comparisons.append(self.compared(name, outputs, tolerance))

    @abstractmethod
    def longest(self) -> int:
        """Context that the engine needs."""

    @abstractmethod
    def computed(self, engine: EngineProcess) -> Tensor:
        """The outputs of a file."""

    @abstractmethod
    def compared(self, name: str, outputs: Tensor, tolerance: float) -> Comparison:
        """Compare them with the model's. Raises ExportError."""

    def compare_tokens(self, engine: EngineProcess) -> None:
        """Compare the engine's tokenizer with the model's. Raises ExportError."""
        expected: list[int] = self.checkpoint.tokenizer()(TEXT, verbose=False)["input_ids"]
        self.same_tokens(engine.tokenize(TEXT), expected, "the check's text")

    def same_tokens(self, ids: Sequence[int], expected: Sequence[int], what: str) -> None:
        """Refuse other tokens than those of transformers, unless the tokenizer was copied."""
        self.report.details["tokenizer_agrees"] = [*ids] == [*expected]
        if [*ids] == [*expected]:
            return
        matches = [token == wanted for token, wanted in zip(ids, expected, strict=False)]
        position = matches.index(False) if False in matches else len(matches)
        message = f"llama.cpp splits {what} into other tokens than transformers, from token {position} on"
        if not self.copied:
            raise ExportError(f"the export fails its check: {message}; nothing was written. {AGAIN}")
        self.report.notes.append(f"{message}; the tokenizer was copied from another file as requested")


class LogitsCheck(EngineCheck):
    """Of a model that writes, on tokens [t]."""

    def __init__(
        self, checkpoint: Checkpoint, report: ExportReport, *, copied: bool, tokens: Tensor, compared: Checkpoint
    ) -> None:
        super().__init__(checkpoint, report, copied=copied)
        self.tokens = tokens
        self.expected = exact_logits(compared, tokens)

    def longest(self) -> int:
        """See `EngineCheck.longest`."""
        return max(len(self.tokens), 64)

    def computed(self, engine: EngineProcess) -> Tensor:
        """Logits [t, v]."""
        return torch.from_numpy(engine.logits(self.tokens.tolist()))

    def compared(self, name: str, outputs: Tensor, tolerance: float) -> Comparison:
        """See `EngineCheck.compared`."""
        return compare_logits(("the model", self.expected), (name, outputs), tolerance)


class OutputsCheck(EngineCheck):
    """Of a model that reads, on texts and pairs as it reads them."""

    engine = POOLING

    def __init__(
        self, checkpoint: Checkpoint, report: ExportReport, *, copied: bool, inputs: Inputs, reading: Reading
    ) -> None:
        super().__init__(checkpoint, report, copied=copied)
        self.inputs, self.reading = inputs, reading
        self.expected = reading.given(exact_outputs(checkpoint, inputs))

    def longest(self) -> int:
        """See `EngineCheck.longest`."""
        return max(map(len, self.inputs.tokens))

    def computed(self, engine: EngineProcess) -> Tensor:
        """Outputs [i, c]."""
        return torch.from_numpy(engine.outputs(self.inputs.tokens))[:, : self.expected.shape[1]]

    def compared(self, name: str, outputs: Tensor, tolerance: float) -> Comparison:
        """See `EngineCheck.compared`."""
        return compare_outputs(("the model", self.expected), (name, outputs), tolerance, scores=self.reading.scores)

    def compare_tokens(self, engine: EngineProcess) -> None:
        """Also compare the tokens of the inputs as llama.cpp's server makes them."""
        super().compare_tokens(engine)
        inputs = self.inputs
        for number, ((query, text), expected) in enumerate(zip(inputs.pairs, inputs.tokens, strict=True)):
            if not inputs.whole[number]:
                continue
            if inputs.template is not None:
                ids = engine.tokenize(inputs.filled(number), written=True)
            elif query is None:
                ids = engine.tokenize(text)
            else:
                begin, end = added_tokens(self.checkpoint.tokenizer(), engine.tokenize("a"))
                parts = (engine.tokenize(part, written=True) for part in (query, text))
                ids = [*begin, *(token for part in parts for token in (*part, *end))]
            self.same_tokens(ids, expected, "a pair" if query is not None else "a text")


@torch.no_grad()
def exact_outputs(checkpoint: Checkpoint, inputs: Inputs) -> Tensor:
    """What a model that reads gives for inputs, [i, c], block by block in float32 on the CPU."""
    objective = cast("ItemObjective", objective_of(checkpoint))
    texts = [torch.tensor([items.sequence_of([tokens])]) for tokens in inputs.tokens]
    every = torch.cat(texts, 1)
    decoder = StreamedDecoder(checkpoint, every, dtype=torch.float32, device=torch.device("cpu"))
    streams = list(decoder.through(texts))
    with decoder.with_head():
        found = [objective.outputs(decoder.head, stream, text) for stream, text in zip(streams, texts, strict=True)]
    return torch.cat(found)
