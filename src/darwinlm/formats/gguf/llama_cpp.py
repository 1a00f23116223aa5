"""llama.cpp through the package cyllama, which contains a CPU build of the library and its bindings."""

from __future__ import annotations

import time

import numpy as np
from cyllama.llama import llama_cpp as library
from gguf import LlamaFileType
from numpy.typing import NDArray

from darwinlm.formats.gguf.engine import Engine, Generated

F32 = 0  # of ggml_type
BATCH = 512
"""Tokens that are decoded at once, as in llama.cpp's own programs."""


class _Model(library.LlamaModel):  # type: ignore[misc]
    """Adds a property that cyllama uses for the size of logits but doesn't define."""

    @property
    def n_vocab(self) -> int:
        """Number of tokens in the vocabulary."""
        return int(self.get_vocab().n_vocab)


class LlamaCpp(Engine):
    """One GGUF file in llama.cpp."""

    def __init__(self, model: str, *, threads: int = 1, context: int = 2048, exact: bool = False) -> None:
        library.llama_backend_init()
        self.model = _Model(model, library.LlamaModelParams(), verbose=False)
        parameters = library.LlamaContextParams()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = min(context, BATCH)
        parameters.n_threads = parameters.n_threads_batch = threads
        if exact:
            parameters.type_k = parameters.type_v = F32
            parameters.flash_attn_type = 0
        self.context = library.LlamaContext(self.model, parameters, verbose=False)
        self.batch = library.LlamaBatch(n_tokens=min(context, BATCH), embd=0, n_seq_max=1)
        self.tokens_read: list[int] = []
        self.vocabulary = self.model.get_vocab()
        self.sampler = library.LlamaSampler(library.LlamaSamplerChainParams())
        self.sampler.add_greedy()

    def _decode(self, tokens: list[int], start: int, keep: int = 1) -> list[NDArray[np.float32]]:
        """Read further tokens. Returns the logits [v] of the last `keep` of them."""
        logits = []
        for piece_start in range(0, len(tokens), BATCH):
            piece = tokens[piece_start : piece_start + BATCH]
            first = max(len(tokens) - keep - piece_start, 0)
            self.batch.reset()
            for offset, token in enumerate(piece):
                self.batch.add(token, start + piece_start + offset, [0], offset >= first)
            self.context.decode(self.batch)
            rows = (self.context.get_logits_ith(place) for place in range(first, len(piece)))
            logits += [np.array(row, dtype=np.float32) for row in rows]
        return logits

    def logits(self, tokens: list[int], keep: int = 0) -> NDArray[np.float32]:
        """Logits [t, v] in float32, or of the last `keep` tokens; the start of the last such text isn't read again."""
        reused, keep = 0, min(keep, len(tokens))
        if keep:
            matches = [old == new for old, new in zip(self.tokens_read, tokens[:-keep], strict=False)]
            reused = matches.index(False) if False in matches else len(matches)
        if not reused or not self.context.memory_seq_rm(0, reused, -1):
            reused = 0
            self.context.kv_cache_clear(True)
        self.tokens_read = tokens
        return np.stack(self._decode(tokens[reused:], reused, keep or len(tokens)))

    def generate(self, tokens: list[int], new_tokens: int) -> Generated:
        """The greedy continuation."""
        self.context.kv_cache_clear(True)
        self.tokens_read = []
        start = time.perf_counter()
        self._decode(tokens, 0)
        generated = [int(self.sampler.sample(self.context, -1))]
        first = time.perf_counter()
        while len(generated) < new_tokens:
            self._decode(generated[-1:], len(tokens) + len(generated) - 1)
            generated.append(int(self.sampler.sample(self.context, -1)))
        return generated, first - start, time.perf_counter() - first

    def tokenize(self, text: str, *, written: bool = False) -> list[int]:
        """Tokens of a text."""
        return list(self.vocabulary.tokenize(text, not written, written))

    @classmethod
    def quantise(cls, model: str, *, target: str, quantisation: str, threads: int) -> None:
        """Quantise a GGUF file with the library's quantiser."""
        parameters = library.LlamaModelQuantizeParams()
        parameters.ftype = int(LlamaFileType[f"MOSTLY_{quantisation}"])
        parameters.nthread = threads
        library.model_quantize(model, target, parameters)
