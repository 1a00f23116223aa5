"""The harness's model with answers shared by processes and, on a CPU, one forward pass for the context of a question.

The harness runs the context again for every answer. Here the keys and values of the context are kept, so that four
answers cost about as much as one. This pays where a single sequence keeps the device busy.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers.cache_utils import DynamicCache

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import first_line

Request = tuple[tuple[str, str], list[int], list[int]]
"""The text of context and answer, and their tokens."""


class SharedLM(HFLM):  # type: ignore[misc]
    """A causal LM of the harness without progress bars."""

    context = 0
    """Leading tokens that all rows of the next forward pass share; 0 for none."""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """As in the harness."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each answer, and whether it is the greedy choice. Raises RuntimeError in all processes."""
        found: list[tuple[float, bool]] = []
        error = ""
        try:
            found = self._answers(parallel.portion(requests), override_bs)
        except Exception as raised:  # noqa: BLE001 - the other processes wait for this one
            error = f"{type(raised).__name__}: {first_line(raised)}"
        parts = parallel.gather((found, error))
        for _, error in parts:
            if error:
                raise RuntimeError(error)
        return list(chain.from_iterable(part for part, _ in parts))

    def _answers(self, requests: Sequence[Request], override_bs: int | None) -> list[tuple[float, bool]]:
        taken = inspect.signature(self.model.forward).parameters
        # llama.cpp remembers contexts by itself.
        shares = self.device.type == "cpu" and getattr(self.config, "use_cache", True) and "logits_to_keep" in taken
        counts = Counter(tuple(context) for _, context, _ in requests)
        groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (_, context, _) in enumerate(requests):
            groups[tuple(context) if shares and counts[tuple(context)] > 1 else ()].append(index)
        found: dict[int, tuple[float, bool]] = {}
        for shared, members in groups.items():
            asked = [requests[index] for index in members]
            longest = max(len(answer) for _, _, answer in asked)
            self.context = len(shared) if len(shared) + longest <= self.max_length else 0
            found.update(zip(members, super()._loglikelihood_tokens(asked, True, override_bs), strict=True))
        self.context = 0
        return [found[index] for index in range(len(requests))]

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
        """Logits [n, t, v] of tokens [n, t]; only from the last token of a shared context on."""
        if not self.context or len(inps) == 1:
            logits: Tensor = super()._model_call(inps, attn_mask, labels)
            return logits
        with torch.no_grad():
            read = self.model(input_ids=inps[:1, : self.context], use_cache=True, logits_to_keep=1)
            name = "cache" if "cache" in read else "past_key_values"  # the newer and the older name
            past = read.get(name)
            if type(past) is not DynamicCache:
                self.context = 0
                return self._model_call(inps, attn_mask, labels)
            past.batch_repeat_interleave(len(inps))
            more = self.model(input_ids=inps[:, self.context :], use_cache=True, **{name: past}).logits
        return torch.cat([read.logits.expand(len(inps), -1, -1), more], 1)
