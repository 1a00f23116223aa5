"""Engines that run GGUF files, by name."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.runtime.errors import missing_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Generated = tuple[list[int], float, float]
"""New tokens, seconds until the first one, and seconds for the remaining ones."""


class Engine(ABC):
    """One model file in an engine. It lives in a process of its own, which `EngineProcess` starts.

    A new engine takes two files: a subclass in a file of its own, which alone imports the engine's package, and an
    entry of `ENGINES` below, under the name by which users see it. Everything else (processes, crashes, checks,
    measurements) follows. A problem is raised as any exception, which the parent reports as an `EngineError`.
    """

    @abstractmethod
    def __init__(self, model: str, *, threads: int = 1, context: int = 2048, exact: bool = False) -> None:
        """Load a file.

        Args:
            model: Path of the file.
            threads: Threads that compute.
            context: Longest text in tokens.
            exact: Whether keys and values stay in float32, for comparisons with PyTorch.
        """

    @abstractmethod
    def tokenize(self, text: str, *, written: bool = False) -> list[int]:
        """Tokens of a text, with the special tokens that the file requests.

        With `written`, the special tokens stand in the text, and none are added.
        """

    def logits(self, tokens: list[int], keep: int = 0) -> NDArray[np.float32]:
        """Logits [t, v] of a text in float32, or of its last `keep` tokens alone, if `keep` isn't 0."""
        raise NotImplementedError(f"{type(self).__name__} gives no logits")

    def generate(self, tokens: list[int], new_tokens: int) -> Generated:
        """The greedy continuation of a text by so many tokens, and the time it takes."""
        raise NotImplementedError(f"{type(self).__name__} writes no text")

    def outputs(self, texts: list[list[int]]) -> NDArray[np.float32]:
        """What a model that reads gives for texts, [i, c] in float32: embeddings, or scores, as the file pools them."""
        raise NotImplementedError(f"{type(self).__name__} gives neither embeddings nor scores")

    @classmethod
    def quantise(cls, model: str, *, target: str, quantisation: str, threads: int) -> None:
        """Write a quantised copy of a file. `quantisation` is named as in llama.cpp, in capitals."""
        raise NotImplementedError(f"{cls.__name__} doesn't quantise files")


@dataclass(frozen=True)
class EngineEntry:
    """The class of an engine, and the package that it needs.

    Attributes:
        target: Its subclass of `Engine`, as `module:Class`. The module is imported in the engine's process alone.
        package: Module that must be installed, whose distribution has the same name.
        extra: Extra of darwinlm that installs it.
    """

    target: str
    package: str
    extra: str

    @property
    def installed(self) -> bool:
        """Whether the engine's package is installed."""
        return importlib.util.find_spec(self.package) is not None

    def require(self, purpose: str) -> None:
        """Raise MissingExtraError if the engine's package isn't installed; the message names the purpose."""
        if not self.installed:
            raise missing_extra(self.package, self.extra, purpose)

    @property
    def release(self) -> str:
        """The engine's package and its version."""
        return f"{self.package} {version(self.package)}"


POOLING = "llama.cpp with pooling"
"""llama.cpp for files of models that read; the package of the other one doesn't give pooled outputs."""
ENGINES: dict[str, EngineEntry] = {
    LLAMA_CPP: EngineEntry("darwinlm.formats.gguf.llama_cpp:LlamaCpp", "cyllama", "gguf"),
    POOLING: EngineEntry("darwinlm.formats.gguf.pooling_llama_cpp:PoolingLlamaCpp", "llama_cpp_py_sync", "reading"),
}
"""Every engine by its name."""


def require_engine(engine: str, purpose: str) -> None:
    """Raise MissingExtraError if an engine's package isn't installed."""
    ENGINES[engine].require(purpose)


def engine_class(target: str) -> type[Engine]:
    """The class that an entry names. Raises ImportError if its package isn't installed."""
    module, _, name = target.partition(":")
    kind: type[Engine] = getattr(import_module(module), name)
    return kind


REQUESTS: Sequence[str] = ("logits", "generate", "outputs", "tokenize")
"""Methods that the parent may call on a loaded engine."""
