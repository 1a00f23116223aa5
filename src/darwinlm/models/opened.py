"""Models for evaluation: any causal LM that transformers can load, also of families that can't be pruned."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from darwinlm.families.loading import load_model, load_tokenizer
from darwinlm.models.in_llama_cpp import open_in_llama_cpp
from darwinlm.models.resolve import resolve_model
from darwinlm.runtime.artifact import model_folder
from darwinlm.runtime.compute import resolve_device, resolve_dtype
from darwinlm.runtime.errors import CheckpointError, FamilyError, ModelError


@dataclass(frozen=True)
class Opened:
    """A loaded model. The engine runs it: PyTorch or llama.cpp."""

    source: str
    model: Any
    tokenizer: Any
    engine: str = "PyTorch"

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


def open_model(
    source: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    allow_remote_code: bool = False,
    dequantised: bool = False,
) -> Opened:
    """Load a model and its tokenizer.

    `source` is a hub id, folder, output folder of a run, or GGUF file; `dtype` and `device` are named as in options. A
    GGUF file runs in llama.cpp as it is, if that is installed. PyTorch runs its weights with a `dtype` or `device`, or
    if `dequantised` weights are asked for and transformers knows the architecture. Raises RecipeError, ModelError,
    MissingExtraError, EngineError.
    """
    path = Path(source).expanduser()
    file = path.suffix == ".gguf" and path.is_file()
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    if file and find_spec("cyllama") is not None and dtype == device == "auto":
        if not dequantised:
            return Opened(source, *open_in_llama_cpp(path), "llama.cpp")
        try:
            return _in_pytorch(source, kind, where, allow_remote_code=allow_remote_code)
        except (CheckpointError, FamilyError):
            return Opened(source, *open_in_llama_cpp(path), "llama.cpp")
    return _in_pytorch(source, kind, where, allow_remote_code=allow_remote_code)


def _in_pytorch(source: str, kind: torch.dtype, where: torch.device, *, allow_remote_code: bool) -> Opened:
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
