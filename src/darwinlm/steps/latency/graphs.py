"""Decoding on a GPU as in inference engines: a cache of fixed size, and one launch for all kernels of a step.

Eagerly a step of one token takes as long as Python needs to launch its kernels, however small they are, and a smaller
model would seem no faster. A CUDA graph is recorded once for a model and replayed for every step.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from torch import Tensor

from darwinlm.runtime.cuda_graph import recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WARM_UP = 3
"""Warm-up steps before a graph is recorded, for the initialisation of libraries."""


def cache_name(model: PreTrainedModel) -> str:
    """Name of the model's cache argument, which differs between releases of transformers."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class GraphedDecoding:
    """Steps of one token after some text [b, t] and `WARM_UP` more tokens; at most `steps` before `rewind`.

    The first token of each sequence stands for the generated ones. The next step overwrites the logits of the last one.
    Raises RuntimeError if a step can't be recorded, as one that reads the device's results (a mixture's routing).
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, steps: int) -> None:
        from transformers import StaticCache

        self.model = model
        self.cache = StaticCache(config=model.config, max_cache_len=tokens.shape[1] + WARM_UP + steps)
        self._cache_argument = {cache_name(model): self.cache}
        self._token = tokens[:, :1].clone()
        model(input_ids=tokens, use_cache=True, logits_to_keep=1, **self._cache_argument)
        for _ in range(WARM_UP):
            self._run()
        self._replay = recorded(self._run, tokens.device)

    def _run(self) -> None:
        self.logits: Tensor = self.model(input_ids=self._token, use_cache=True, **self._cache_argument).logits

    def step(self) -> Tensor:
        """Logits of one more token, [b, 1, v]."""
        self._replay()
        return self.logits

    def rewind(self) -> None:
        """Begin again with an empty cache: results change, but the time of a step, which reads all of it, does not."""
        self.cache.reset()
