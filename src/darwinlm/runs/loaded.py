"""A model to use from Python: `darwinlm.load`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from darwinlm.evaluation.evaluate_model import Evaluated
    from darwinlm.formats.logits_check import ExportReport
    from darwinlm.formats.opened import Opened


@dataclass(frozen=True)
class Model:
    """A loaded model. `model` and `tokenizer` are those of transformers; `source` is what it was loaded from."""

    source: str
    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    _opened: Opened = field(repr=False)

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float | None = None,
        repetition_penalty: float = 1.0,
    ) -> str:
        """Answer a prompt, with the chat template if the model has one.

        A temperature of 0 is greedy, None uses the model's generation config. A repetition penalty above 1 makes tokens
        less likely that are in the conversation. Raises RecipeError if a number is out of
        range, DataError if the prompt doesn't fit into the model's context.
        """
        from darwinlm.evaluation.conversation import AnswerSettings, Conversation
        from darwinlm.runtime.torch_state import in_usual_state

        conversation = Conversation(
            self._opened, AnswerSettings(max_tokens, temperature, repetition_penalty=repetition_penalty)
        )
        return in_usual_state(conversation.answer)(prompt)

    def evaluate(
        self,
        *,
        suite: str | None = None,
        data_dir: str | Path | None = None,
        limit: int | None = None,
        texts: str | Path | Sequence[str | Path] = (),
        against: str | Path | None = None,
        tokens: int = 16384,
        sequence_length: int = 512,
        batch_size: int = 8,
        device: str = "auto",
        dtype: str = "auto",
        chat: bool = False,
    ) -> Evaluated:
        """Measure the model, as `darwinlm evaluate` does with options of the same names. Raises as `evaluate_model`.

        Args:
            suite: Benchmarks: "paper", "quick", or tasks such as "piqa,arc_challenge:25".
            data_dir: Folder with local data of the benchmarks.
            limit: Number of items of each task; None takes all.
            texts: Sources of text on which to measure perplexity.
            against: Dense model to compare with on texts and chats.
            tokens: Number of tokens of each text.
            sequence_length: Tokens in a sequence.
            batch_size: Sequences in a forward pass.
            device: "auto", "cpu", "cuda" ...
            dtype: "auto", "bfloat16", "float16" or "float32".
            chat: Whether to measure on new answers of the dense model.
        """
        from darwinlm.evaluation.evaluate_model import EvaluationRequest, evaluate_model
        from darwinlm.runtime.torch_state import in_usual_state

        request = EvaluationRequest(
            self.source,
            suite=suite,
            data_dir=None if data_dir is None else Path(data_dir),
            limit=limit,
            texts=tuple(map(str, (texts,) if isinstance(texts, str | Path) else texts)),
            against=None if against is None else str(against),
            tokens=tokens,
            sequence_length=sequence_length,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
            chat=chat,
        )
        return in_usual_state(evaluate_model)(request)

    def export(
        self,
        out: str | Path,
        *,
        quantisation: str = "f16",
        tokenizer_from: str | Path | None = None,
        unchecked: bool = False,
        overwrite: bool = False,
        say: Callable[[str], None] = lambda message: None,
    ) -> ExportReport:
        """Write the model as the GGUF file `out` and check it. Arguments and errors are those of `export_model`."""
        from darwinlm.runs.exporting import export_model
        from darwinlm.runtime.torch_state import in_usual_state

        return in_usual_state(export_model)(
            Path(self.source),
            Path(out),
            quantisation=quantisation,
            tokenizer_from=None if tokenizer_from is None else Path(tokenizer_from),
            unchecked=unchecked,
            overwrite=overwrite,
            say=say,
        )


def load(source: str | Path, *, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a model once, to use it as often as you like.

    `source` is the output folder of a run, the folder of a model, a hub id or a GGUF file. `device` is auto, cpu,
    cuda ..., `dtype` auto, bfloat16, float16 or float32. Raises ModelError, RecipeError, MissingExtraError.
    """
    from darwinlm.runtime.spinning import load_torch

    load_torch()
    from darwinlm.formats.opened import open_model
    from darwinlm.runtime.torch_state import in_usual_state

    def opened_and_loaded() -> Model:
        opened = open_model(str(source), device=device, dtype=dtype)
        return Model(str(source), opened.model, opened.tokenizer, opened)

    return in_usual_state(opened_and_loaded)()
