"""Models to evaluate and to talk to: in PyTorch, or GGUF files as they are in llama.cpp."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.formats.gguf.engine import ENGINES
from darwinlm.formats.gguf.in_llama_cpp import open_in_llama_cpp
from darwinlm.formats.resolve import resolve_finished
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.loading import check_finite, check_tokens
from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.model.surgery.fewer_tokens import cut_weights
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.compute import resolve_device, resolve_dtype
from darwinlm.runtime.errors import CheckpointError, FamilyError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from darwinlm.formats.gguf.in_llama_cpp import LlamaCppModel


@dataclass
class Opened:
    """A model to use. The engine runs it: PyTorch or llama.cpp.

    Attributes:
        in_llama_cpp: The model, if llama.cpp runs it.
        checkpoint: Its files, if PyTorch runs it.
        work: Folder for weights that are computed from its files. It exists as long as the model is used.
        fewer_tokens: Whether its vocabulary was cut to that of a smaller model.
    """

    source: str
    tokenizer: PreTrainedTokenizerBase
    engine: str = "PyTorch"
    in_llama_cpp: LlamaCppModel | None = None
    checkpoint: Checkpoint | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    work: Path = Path()
    fewer_tokens: bool = False

    @cached_property
    def model(self) -> PreTrainedModel:
        """The whole model; PyTorch loads it when it is first asked for."""
        return self.in_llama_cpp if self.checkpoint is None else self.checkpoint.load(self.dtype, self.device)

    def cut(self, rows: Sequence[int]) -> None:
        """Keep only the tokens with these numbers, in this order.

        Raises:
            CheckpointError, StorageError: The smaller model can't be written.
            ModelError: The model answers with other tokens.
        """
        assert self.checkpoint is not None
        answers = self.checkpoint.answers
        if not {*answers} <= {*rows}:
            raise ModelError(
                f"{self.source} answers with tokens that the smaller model lacks: --against must be the model from "
                "which the other was pruned"
            )
        cut_weights(self.checkpoint, rows, self.work / "cut")
        cut = Checkpoint.open(self.work / "cut", self.source)
        self.checkpoint = replace(cut, answers=tuple(rows.index(answer) for answer in answers))
        self.fewer_tokens = True

    def decoder(self, tokens: Tensor) -> StreamedDecoder | PreTrainedModel:
        """The model to read these tokens with: block by block if PyTorch runs it."""
        if self.checkpoint is None:
            return self.model
        checkpoint = self.checkpoint

        def weights(block: int) -> dict[str, Tensor]:
            prefix = checkpoint.block_prefix(block)
            tensors = checkpoint.read(prefix, mapped=False)
            check_finite({prefix + name: tensor for name, tensor in tensors.items()}, checkpoint.folder)
            return tensors

        return StreamedDecoder(checkpoint, tokens, dtype=self.dtype, device=self.device, weights=weights)

    @property
    def config(self) -> PreTrainedConfig:
        """Its configuration."""
        return self.model.config if self.checkpoint is None else self.checkpoint.config

    @property
    def vocabulary(self) -> int:
        """Rows of its embedding."""
        if self.checkpoint is None:
            return len(self.model.get_input_embeddings().weight)
        return int(self.config.vocab_size)

    @property
    def params(self) -> int:
        """Number of parameters; a tied embedding counts once."""
        model = self.model if self.checkpoint is None else self.checkpoint.skeleton()
        return sum(parameter.numel() for parameter in model.parameters())

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse tokens beyond the embedding's rows. Raises ModelError."""
        check_tokens(int(tokens.max()), self.vocabulary, self.source)


def open_model(
    source: str, *, dtype: str = "auto", device: str = "auto", dequantised: bool = False, reads: bool = False
) -> Opened:
    """Load a model and its tokenizer.

    `source` is a hub id, folder, output folder of a run, or GGUF file; `dtype` and `device` are named as in options. A
    GGUF file runs in llama.cpp as it is, if that is installed. PyTorch runs its weights with a `dtype` or `device`, or
    if `dequantised` weights are asked for and transformers knows the architecture. A model that gives scores or
    embeddings is refused unless it `reads`. Raises RecipeError, ModelError, MissingExtraError, EngineError.
    """
    path = Path(source).expanduser()
    file = path.suffix == ".gguf" and path.is_file()
    resolved_device = resolve_device(device)
    resolved_dtype = resolve_dtype(dtype, resolved_device)
    if file and ENGINES[LLAMA_CPP].installed and dtype == device == "auto":
        if not dequantised:
            return _in_llama_cpp(source, path)
        try:
            return _in_pytorch(source, resolved_dtype, resolved_device, reads)
        except (CheckpointError, FamilyError):
            return _in_llama_cpp(source, path)
    return _in_pytorch(source, resolved_dtype, resolved_device, reads)


def _in_pytorch(source: str, dtype: torch.dtype, device: torch.device, reads: bool) -> Opened:
    work = Path(tempfile.mkdtemp(prefix="darwinlm-"))
    try:
        checkpoint = resolve_finished(source, work / "model")
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    if checkpoint.family.ending != "language" and not reads:
        shutil.rmtree(work, ignore_errors=True)
        raise ModelError(
            f"{source} gives scores or embeddings, not text: load it with CrossEncoder or SentenceTransformer of "
            "sentence-transformers, and measure it with darwinlm evaluate --text"
        )
    tokenizer = checkpoint.tokenizer()
    opened = Opened(source, tokenizer, checkpoint=checkpoint, dtype=dtype, device=device, work=work)
    weakref.finalize(opened, shutil.rmtree, work, ignore_errors=True)
    return opened


def _in_llama_cpp(source: str, path: Path) -> Opened:
    model, tokenizer = open_in_llama_cpp(path)
    return Opened(source, tokenizer, LLAMA_CPP, model)
