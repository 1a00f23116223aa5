"""A model to use from Python: `darwinlm.load`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darwinlm.evaluation.evaluate_model import Evaluated
    from darwinlm.formats.logits_check import ExportReport
    from darwinlm.formats.opened import Opened


@dataclass(frozen=True)
class Model:
    """A loaded model. `model` and `tokenizer` are those of transformers; `source` is what it was loaded from."""

    source: str
    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    _opened: Opened = field(repr=False)

    def generate(self, prompt: str, *, max_tokens: int = 128, temperature: float | None = None) -> str:
        """Answer a prompt, with the chat template if the model has one.

        A temperature of 0 is greedy, None uses the model's generation config. Raises RecipeError if a number is out of
        range, DataError if the prompt doesn't fit into the model's context.
        """
        from darwinlm.evaluation.conversation import AnswerSettings, Conversation
        from darwinlm.runtime.torch_state import in_usual_state

        conversation = Conversation(self._opened, AnswerSettings(max_tokens, temperature))
        return in_usual_state(conversation.answer)(prompt)

    def evaluate(self, **wanted: Any) -> Evaluated:
        """Measure as `darwinlm evaluate`: fields of `EvaluationRequest`, such as suite="quick". Raises as it does."""
        from darwinlm.evaluation.evaluate_model import EvaluationRequest, evaluate_model
        from darwinlm.runtime.torch_state import in_usual_state

        texts = wanted.get("texts", ())
        wanted["texts"] = tuple(map(str, (texts,) if isinstance(texts, str | Path) else texts))
        for name, kind in (("against", str), ("data_dir", Path)):
            if wanted.get(name) is not None:
                wanted[name] = kind(wanted[name])
        return in_usual_state(evaluate_model)(EvaluationRequest(self.source, **wanted))

    def export(self, out: str | Path, **how: Any) -> ExportReport:
        """Write and check a GGUF file: arguments of `export_model`, such as quantisation="q8_0". Raises as it does."""
        from darwinlm.runs.exporting import export_model
        from darwinlm.runtime.torch_state import in_usual_state

        return in_usual_state(export_model)(Path(self.source), Path(out), **how)


def load(source: str | Path, *, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a model once, to use it as often as you like.

    `source` is the output folder of a run, the folder of a model, a hub id or a GGUF file. `device` is auto, cpu,
    cuda ..., `dtype` auto, bfloat16, float16 or float32. Raises ModelError, RecipeError, MissingExtraError.
    """
    from darwinlm.formats.opened import open_model
    from darwinlm.runtime.torch_state import in_usual_state

    def opened_and_loaded() -> Model:
        opened = open_model(str(source), device=device, dtype=dtype)
        return Model(str(source), opened.model, opened.tokenizer, opened)

    return in_usual_state(opened_and_loaded)()
