"""Models for evaluation: any causal LM that transformers can load, also of families that can't be pruned."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from darwinlm.families.loading import load_model, load_tokenizer
from darwinlm.models.resolve import resolve_model
from darwinlm.runtime.artifact import model_folder
from darwinlm.runtime.compute import resolve_device, resolve_dtype
from darwinlm.runtime.errors import FamilyError, ModelError


@dataclass(frozen=True)
class Opened:
    """A loaded model."""

    source: str
    model: Any
    tokenizer: Any

    @property
    def params(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def check_tokens(self, tokens: torch.Tensor) -> None:
        """Refuse tokens beyond the embedding's rows. Raises ModelError."""
        largest, rows = int(tokens.max()), len(self.model.get_input_embeddings().weight)
        if largest >= rows:
            raise ModelError(
                f"the tokenizer of {self.source} gives the token {largest}, but the model's vocabulary ends at "
                f"{rows - 1}: it belongs to another model"
            )


def open_model(source: str, *, dtype: str = "auto", device: str = "cpu", allow_remote_code: bool = False) -> Opened:
    """Load a model and its tokenizer.

    `source` is a hub id, folder, output folder of a run, or GGUF file; `dtype` and `device` are named as in options.
    Raises RecipeError, ModelError, MissingExtraError.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    inside = model_folder(Path(source).expanduser())
    path = str(inside) if inside != Path(source).expanduser() else source
    with tempfile.TemporaryDirectory(prefix="darwinlm-") as work:
        try:
            checkpoint = resolve_model(path, Path(work) / "model", allow_remote_code=allow_remote_code)
        except FamilyError:  # can't be pruned
            folder = inside if inside.is_dir() else path
            model = load_model(folder, kind, allow_remote_code=allow_remote_code)
            tokenizer = load_tokenizer(folder, None, allow_remote_code=allow_remote_code)
            return Opened(source, model.eval().requires_grad_(requires_grad=False).to(where), tokenizer)
        tokenizer = checkpoint.tokenizer()
        return Opened(source, checkpoint.load(kind, where), tokenizer)
