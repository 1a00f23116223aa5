"""A GGUF file in llama.cpp behind the interface of transformers, for evaluation and chat."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from darwinlm.formats.gguf.header import GgufHeader, read_header, refuse_reader
from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.formats.gguf.read import tokenizer_in
from darwinlm.model.families.loading import PROBE
from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.runtime.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHORTEST = 2048
"""Smallest context of the engine in tokens; it doubles when a longer text comes."""


class LlamaCppModel(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Logits from llama.cpp, in its own process. Parameters only have the shapes of the file's tensors."""

    config_class = PreTrainedConfig

    def __init__(self, path: Path, header: GgufHeader) -> None:
        sizes = header.sizes()
        rows, width = header.tensors["token_embd.weight"]
        longest = int(sizes.get("context_length", SHORTEST))
        end = header.keys.get("tokenizer.ggml.eos_token_id")
        super().__init__(PreTrainedConfig(vocab_size=rows, max_position_embeddings=longest, use_cache=False))
        self.path, self.longest, self.room = path, longest, 0
        self.engine: EngineProcess | None = None
        self.generation_config = GenerationConfig(eos_token_id=end, use_cache=False)
        with torch.device("meta"):
            self.embedding = nn.Embedding(rows, width)
            shapes = (shape for name, shape in header.weights().items() if name != "token_embd.weight")
            self.weights = nn.ParameterList(torch.empty(shape) for shape in shapes)

    @property
    def device(self) -> torch.device:
        """Where its logits are."""
        return torch.device("cpu")

    def get_input_embeddings(self) -> nn.Module:
        """The shape of the embedding."""
        return self.embedding

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 0, **_: object
    ) -> CausalLMOutput:
        """Logits [b, t, v] of tokens [b, t], or of the last `logits_to_keep`; zeros where the mask is 0."""
        keep = logits_to_keep or input_ids.shape[1]
        logits = torch.zeros(len(input_ids), input_ids.shape[1], self.config.vocab_size)
        masks = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        for row, tokens, mask in zip(logits, input_ids, masks.bool(), strict=True):
            last = self._running(int(mask.sum())).logits(tokens[mask].tolist(), keep=keep)
            row[mask.nonzero()[-len(last) :, 0]] = torch.from_numpy(last)
        return CausalLMOutput(logits=logits[:, -keep:].to(input_ids.device))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object
    ) -> dict[str, Tensor | int | None]:
        """The whole text; the engine remembers what it has read."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": 1}

    def tokenize(self, text: str) -> list[int]:
        """Tokens of the engine's own tokenizer."""
        return self._running(0).tokenize(text)

    def close(self) -> None:
        """End the engine's process; a further text starts it again."""
        if self.engine is not None:
            self.engine.__exit__()
            self.engine = None

    def _running(self, tokens: int) -> EngineProcess:
        if self.engine is None or tokens > self.room:
            if self.engine is not None:
                self.engine.__exit__()
            room = max(self.room, SHORTEST)
            while room < tokens:
                room *= 2
            self.room = min(room, max(self.longest, tokens))
            engine = EngineProcess(LLAMA_CPP, self.path, threads=torch.get_num_threads(), context=self.room)
            self.engine = engine.__enter__()
            weakref.finalize(self, self.engine.__exit__)
        return self.engine


def open_in_llama_cpp(path: Path) -> tuple[LlamaCppModel, PreTrainedTokenizerBase]:
    """The model of a file, and the tokenizer in it.

    Raises:
        CheckpointError: The file is damaged or of a model that reads, or transformers and llama.cpp split text
            differently with its tokenizer.
        MissingExtraError, EngineError: llama.cpp isn't installed, or can't load the file.
    """
    header = read_header(path)
    refuse_reader(header)
    tokenizer = tokenizer_in(path, header)
    model = LlamaCppModel(path, header).eval()
    if model.tokenize(PROBE) != tokenizer(PROBE)["input_ids"]:
        raise CheckpointError(
            f"transformers splits text otherwise than llama.cpp with the tokenizer in {path}: give the folder of the "
            "model that it was made from"
        )
    return model, tokenizer
