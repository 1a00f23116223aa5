"""Decoding on a GPU as in inference engines: a cache of fixed size, and one launch for all kernels of a step.

Eagerly a step of one token takes as long as Python needs to launch its kernels, however small they are, and a smaller
model would seem no faster. A CUDA graph is recorded once for a model and replayed for every step.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from darwinlm.runtime.cuda_graph import recorded

WARM_UP = 3
"""Warm-up steps before a graph is recorded, for the initialisation of libraries."""

WINDOW_COUNT = "cumulative_length_int"
"""Attribute of transformers' caches of sliding windows: their count of tokens in Python."""


def cache_name(model: Any) -> str:
    """Name of the model's cache argument, which differs between releases of transformers."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class StaticDecoding:
    """Steps of one token after some text [b, t], each with the same tensors; at most `steps` before `rewind`.

    The first token of each sequence stands for the generated ones.
    """

    def __init__(self, model: Any, tokens: Tensor, steps: int) -> None:
        from transformers import StaticCache

        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=tokens.shape[1] + steps)
        self._named = {cache_name(model): self.cache}
        self._token = tokens[:, :1].clone()
        model(input_ids=tokens, use_cache=True, logits_to_keep=1, **self._named)
        self._states = [(state, state.clone()) for layer in self.cache.layers for state in _states(layer)]
        windows = [layer for layer in self.cache.layers if hasattr(layer, WINDOW_COUNT)]
        self._windows = [(layer, getattr(layer, WINDOW_COUNT)) for layer in windows]

    def step(self) -> Tensor:
        """Logits of one more token, [b, 1, v]."""
        logits: Tensor = self.model(input_ids=self._token, use_cache=True, **self._named).logits
        return logits

    def rewind(self) -> None:
        """Undo all steps: the next one starts at the end of the text.

        A sliding window that was full has lost what the steps pushed out; that changes results, but not their time.
        """
        for state, begun in self._states:
            state.copy_(begun)
        for layer, number in self._windows:
            setattr(layer, WINDOW_COUNT, number)


def _states(layer: Any) -> list[Tensor]:
    """What a step changes besides keys and values: the count of tokens, or the states of linear attention."""
    found = [value for name, value in vars(layer).items() if name not in ("keys", "values")]
    several = [state for value in found if isinstance(value, dict) for state in value.values()]
    return [state for state in (*found, *several) if isinstance(state, Tensor)]


class GraphedDecoding(StaticDecoding):
    """The same steps as a CUDA graph; the next step overwrites the logits of the last one.

    Raises RuntimeError if a step can't be recorded, as one that reads the device's results (a mixture's routing).
    """

    def __init__(self, model: Any, tokens: Tensor, steps: int) -> None:
        super().__init__(model, tokens, max(steps, WARM_UP))
        for _ in range(WARM_UP):
            super().step()
        self.rewind()
        self._replay = recorded(self._record, tokens.device)

    def _record(self) -> None:
        self.logits = super().step()

    def step(self) -> Tensor:
        """Logits of one more token, [b, 1, v]."""
        self._replay()
        return self.logits
