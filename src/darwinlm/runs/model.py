"""A model to use from Python: `darwinlm.load`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darwinlm.report.summary import dense_of

if TYPE_CHECKING:
    from darwinlm.engines.opened import Opened
    from darwinlm.evaluation.evaluate import Evaluated
    from darwinlm.export.check import ExportReport


@dataclass(frozen=True)
class Model:
    """A loaded model. `model` and `tokenizer` are those of transformers; `source` is what it was loaded from."""

    source: str
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    _opened: Opened = field(repr=False)
    _how: dict[str, Any] = field(repr=False)

    def generate(self, prompt: str, *, max_tokens: int = 128, temperature: float | None = None) -> str:
        """Answer a prompt, with the chat template if the model has one.

        A temperature of 0 is greedy, None uses the model's generation config. Raises DataError if the prompt doesn't
        fit into the model's context.
        """
        from darwinlm.evaluation.chat import AnswerSettings, Conversation

        return Conversation(self._opened, AnswerSettings(max_tokens, temperature)).answer(prompt)

    def evaluate(
        self,
        *,
        suite: str | None = None,
        text: str | Sequence[str] = (),
        against: str | None = None,
        limit: int | None = None,
        tokens: int = 16384,
        sequence_length: int = 512,
        data_dir: str | Path | None = None,
        out: str | Path | None = None,
    ) -> Evaluated:
        """Measure benchmarks, perplexity, and KL to the dense model, as `darwinlm evaluate`.

        Args:
            suite: "quick", "paper", or tasks such as "sciq,arc_easy".
            text: Sources of text for perplexity.
            against: The dense model, for texts; None takes that of the run, if the model was loaded from one.
            limit: Items of each task; None scores all.
            tokens: Tokens of each text.
            sequence_length: Tokens of each sequence of text.
            data_dir: Local data of the benchmarks.
            out: JSON file for the result; the same call resumes from it.

        Raises:
            DarwinLMError: As `darwinlm evaluate`.
        """
        from darwinlm.evaluation.evaluate import EvaluationRequest, evaluate_model

        request = EvaluationRequest(
            model=self.source,
            suite=suite,
            texts=(text,) if isinstance(text, str) else tuple(text),
            against=against or (dense_of(self.source) if text else None),
            limit=limit,
            tokens=tokens,
            sequence_length=sequence_length,
            data_dir=None if data_dir is None else Path(data_dir),
            **self._how,
        )
        return evaluate_model(request, None if out is None else Path(out))

    def export(
        self,
        out: str | Path,
        *,
        quant: str = "f16",
        overwrite: bool = False,
    ) -> ExportReport:
        """Write the model as a GGUF file, and check it, as `darwinlm export`.

        `quant` is its type, such as "q8_0". Raises ExportError, MissingExtraError, StorageError, BusyError.
        """
        from darwinlm.export.run import export_model

        how: dict[str, Any] = {"quantisation": quant, "overwrite": overwrite}
        return export_model(Path(self.source), Path(out), **how)


def load(source: str | Path, *, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a model once, to use it as often as you like.

    `source` is the output folder of a run, the folder of a model, a hub id or a GGUF file. `device` is auto, cpu,
    cuda ..., `dtype` auto, bfloat16, float16 or float32. Raises ModelError, RecipeError, MissingExtraError.
    """
    from darwinlm.engines.opened import open_model

    how = {"device": device, "dtype": dtype}
    opened = open_model(str(source), device=device, dtype=dtype)
    return Model(str(source), opened.model, opened.tokenizer, opened, how)
