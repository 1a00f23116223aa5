"""A model to use from Python: `darwinlm.load`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darwinlm.engines.opened import Opened


@dataclass(frozen=True)
class Model:
    """A loaded model; `model` and `tokenizer` are those of transformers."""

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    _opened: Opened = field(repr=False)

    def generate(self, prompt: str, *, max_tokens: int = 128, temperature: float | None = None) -> str:
        """Answer a prompt, with the chat template if the model has one.

        A temperature of 0 is greedy, None uses the model's generation config. Raises DataError if the prompt doesn't
        fit into the model's context.
        """
        from darwinlm.evaluation.chat import AnswerSettings, Conversation

        return Conversation(self._opened, AnswerSettings(max_tokens, temperature)).answer(prompt)


def load(source: str | Path, *, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a model once, to use it as often as you like.

    `source` is the output folder of a run, the folder of a model, a hub id or a GGUF file. `device` is auto, cpu,
    cuda ..., `dtype` auto, bfloat16, float16 or float32. Raises ModelError, RecipeError, MissingExtraError.
    """
    from darwinlm.engines.opened import open_model

    opened = open_model(str(source), device=device, dtype=dtype)
    return Model(opened.model, opened.tokenizer, opened)
