"""A decoder without its head in llama.cpp: hidden states of documents, averaged as an embedder does it.

cyllama gives hidden states by token, so the average is taken here; it costs nothing beside the layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cyllama.llama import llama_cpp as library
from numpy.typing import NDArray

AT_ONCE = 512
"""Tokens that llama.cpp computes at once by default."""
NO_POOLING = 0


class PooledGguf:
    """One GGUF file that reads up to so many documents of up to so many tokens at once."""

    def __init__(self, path: Path, *, documents: int, tokens: int, threads: int = 1) -> None:
        library.llama_backend_init()
        library.disable_logging()
        self.model = library.LlamaModel(str(path), library.LlamaModelParams(), verbose=False)
        settings = library.LlamaContextParams()
        settings.n_ctx = settings.n_batch = documents * tokens
        settings.n_ubatch = min(documents * tokens, AT_ONCE)
        settings.n_seq_max = documents
        settings.n_threads = settings.n_threads_batch = threads
        settings.embeddings, settings.pooling_type = True, NO_POOLING
        self.context = library.LlamaContext(self.model, settings, verbose=False)
        self.batch = library.LlamaBatch(n_tokens=documents * tokens, embd=0, n_seq_max=documents)

    def vectors(self, documents: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Mean hidden state [document, width] of every document's tokens."""
        self.context.kv_cache_clear(True)
        self.batch.reset()
        for number, document in enumerate(documents):
            for place, token in enumerate(document):
                self.batch.add(token, place, [number], True)
        self.context.decode(self.batch)
        rows = iter(range(sum(map(len, documents))))
        states = [[self.context.get_embeddings_ith(next(rows)) for _ in document] for document in documents]
        return np.array([np.mean(np.asarray(state, dtype=np.float32), axis=0) for state in states])
