"""The saved model in the GGUF file that a budget bounds, and the dense model quantised to the same bound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.formats.format import WriteOptions
from darwinlm.formats.gguf.engine import require_engine
from darwinlm.formats.gguf.gguf_format import GGUF, SUFFIX
from darwinlm.formats.gguf.in_llama_cpp import open_in_llama_cpp
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.runtime.errors import BudgetError, import_extra
from darwinlm.runtime.published import short_model
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.file.file_figures import BoundedFileFigures, QuantisedFile

EXCESS = 1.01
"""Bytes of the file relative to the bound that the prediction may be wrong by."""


def check_file(budget: BudgetSettings) -> None:
    """Raise MissingExtraError before the first step if the file can't be written or measured."""
    if budget.kind == "file":
        import_extra("gguf", "gguf", "a budget of a GGUF file")
        require_engine(LLAMA_CPP, "a budget of a GGUF file")


@dataclass(frozen=True)
class _FileRequest:
    """A GGUF file to write and measure."""

    checkpoint: Checkpoint
    quantisation: str
    path: Path


def write_bounded_file(
    dense: Checkpoint, small: Checkpoint, bound: int, kind: str, tokens: Tensor, folder: Path, scratch: Path
) -> BoundedFileFigures:
    """Write both files, measure them in llama.cpp on tokens [n, t], and delete that of the dense model.

    The file of the saved model, of the quantisation `kind`, is written to `folder`, the other one to `scratch`. Raises
    BudgetError if the file exceeds the bound.
    """
    path, dense_path = folder / f"model-{kind}.gguf", scratch / "dense.gguf"
    source = Path(dense.source)
    same_tokens = source.suffix == SUFFIX and dense.config.vocab_size == small.config.vocab_size
    tokenizer = source if same_tokens else None

    requests = {"saved": _FileRequest(small, kind, path)}
    if (largest := GGUF.largest(dense, bound)) is not None:
        requests["dense"] = _FileRequest(dense, largest[0], dense_path)
    for request in requests.values():
        GGUF.write(request.checkpoint, request.path, WriteOptions(request.quantisation, tokenizer))
    if (size := path.stat().st_size) > EXCESS * bound:
        raise BudgetError(f"the file has {size:,} bytes, more than the {bound:,} of budget.file: please report this")
    opened = {name: open_in_llama_cpp(request.path)[0] for name, request in requests.items()}
    quality = measure_quality(dense.load(torch.float32), opened, tokens, batch_tokens=tokens.shape[1])
    files = {
        name: QuantisedFile(quantisation=request.quantisation, bytes=request.path.stat().st_size, kl=quality[name].kl)
        for name, request in requests.items()
    }
    for model in opened.values():
        model.close()
    dense_path.unlink(missing_ok=True)
    return BoundedFileFigures(
        model=short_model(dense.source),
        file=path.name,
        tokens=tokens.numel(),
        saved=files["saved"],
        dense=files.get("dense"),
    )
