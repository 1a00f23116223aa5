"""llama.cpp for models that read, through the package llama-cpp-py-sync, which contains a CPU build of the library.

The package calls the C interface of llama.cpp directly, which alone gives pooled outputs.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator

import numpy as np
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
from numpy.typing import NDArray

from darwinlm.formats.gguf.engine import Engine

ffi, library = get_ffi(), get_lib()
F32, ERRORS = 0, 4  # of ggml_type and ggml_log_level
RANK = 4
"""The pooling of models that give scores; their outputs are as many as the file names labels."""
AT_ONCE = 512
"""Least number of tokens that are computed at once, as in llama.cpp's own programs; a text is never divided."""
SEQUENCES = 64
"""Most texts that are computed at once."""


@ffi.callback("void(enum ggml_log_level, const char *, void *)")  # type: ignore[untyped-decorator]
def _log(level: int, text: object, _: object) -> None:
    if level == ERRORS:
        sys.stderr.write(f"{ffi.string(text).decode(errors='replace').strip()}\n")


def _free(context: object, model: object) -> None:
    library.llama_free(context)
    library.llama_model_free(model)


class PoolingLlamaCpp(Engine):
    """One GGUF file of a model that reads. Pooling is that of the file."""

    def __init__(self, model: str, *, threads: int = 1, context: int = AT_ONCE, exact: bool = False) -> None:
        library.llama_log_set(_log, ffi.NULL)
        library.llama_backend_init()
        self.model = library.llama_model_load_from_file(model.encode(), library.llama_model_default_params())
        if self.model == ffi.NULL:
            raise ValueError("failed to load the model")
        settings = library.llama_context_default_params()
        self.at_once = max(context, AT_ONCE)
        settings.n_ctx = settings.n_batch = settings.n_ubatch = self.at_once
        settings.n_seq_max, settings.kv_unified = SEQUENCES, True
        settings.n_threads = settings.n_threads_batch = threads
        settings.embeddings = True
        if exact:
            settings.type_k = settings.type_v = F32
            settings.flash_attn_type = 0
        self.context = library.llama_init_from_model(self.model, settings)
        if self.context == ffi.NULL:
            raise ValueError("failed to prepare the model")
        weakref.finalize(self, _free, self.context, self.model)
        self.pooling = library.llama_pooling_type(self.context)
        self.width = library.llama_model_n_embd_out(self.model)
        if self.pooling == RANK:
            self.width = library.llama_model_n_cls_out(self.model)

    def outputs(self, texts: list[list[int]]) -> NDArray[np.float32]:
        """Embeddings or scores [i, c]. Raises ValueError if llama.cpp gives none."""
        return np.concatenate([self._computed(part) for part in self._parts(texts)])

    def _parts(self, texts: list[list[int]]) -> Iterator[list[list[int]]]:
        """Texts that are computed at once."""
        part: list[list[int]] = []
        for text in texts:
            if part and (len(part) == SEQUENCES or sum(map(len, part)) + len(text) > self.at_once):
                yield part
                part = []
            part.append(text)
        yield part

    def _computed(self, texts: list[list[int]]) -> NDArray[np.float32]:
        library.llama_memory_clear(library.llama_get_memory(self.context), True)
        batch = library.llama_batch_init(sum(map(len, texts)), 0, 1)
        try:
            for number, text in enumerate(texts):
                for place, token in enumerate(text):
                    at = batch.n_tokens
                    batch.token[at], batch.pos[at], batch.logits[at] = token, place, True
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
                    batch.n_tokens = at + 1
            if status := library.llama_decode(self.context, batch):
                raise ValueError(f"llama_decode failed with {status} on {len(texts)} texts")
        finally:
            library.llama_batch_free(batch)
        found = [library.llama_get_embeddings_seq(self.context, number) for number in range(len(texts))]
        if ffi.NULL in found:
            raise ValueError(f"there are no outputs with the pooling {self.pooling} of the file")
        size = self.width * np.dtype(np.float32).itemsize
        return np.stack([np.frombuffer(ffi.buffer(one, size), dtype=np.float32).copy() for one in found])

    def tokenize(self, text: str, *, written: bool = False) -> list[int]:
        """Tokens of a text."""
        data = text.encode()
        room = len(data) + 8
        tokens = ffi.new("llama_token[]", room)
        vocabulary = library.llama_model_get_vocab(self.model)
        count = library.llama_tokenize(vocabulary, data, len(data), tokens, room, not written, written)
        return list(ffi.unpack(tokens, count))
