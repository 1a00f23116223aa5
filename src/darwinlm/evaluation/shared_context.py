"""The harness's model with one forward pass over the context for all answers to a question.

The harness runs context and answer together for every answer. Here the keys and values of the context are kept, and
logits are only computed for answers. So four answers to a question cost about as much as one. Results are the same, up
to rounding. This pays off if a single sequence keeps the device busy, as on a CPU.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers.cache_utils import DynamicCache

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import first_line

Request = tuple[tuple[str, str], list[int], list[int]]
Answer = tuple[float, bool]


class QuietLM(HFLM):  # type: ignore[misc]
    """A causal LM of the harness without progress bars, which it would always show; processes share the contexts."""

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """As in the harness."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[Answer]:
        """Log-likelihood of each answer, and whether it is the greedy choice, in the order of the requests.

        Raises the error of this process, or a RuntimeError with type and text of another's.
        """
        contexts = list(dict.fromkeys(tuple(context) for _, context, _ in requests))
        here = set(parallel.mine(contexts))
        mine = [index for index, (_, context, _) in enumerate(requests) if tuple(context) in here]
        found: dict[int, Answer] = {}
        try:
            found.update(zip(mine, self._answers([requests[index] for index in mine], override_bs), strict=True))
        except Exception as error:  # the harness raises any type; the others wait for this process
            parallel.gather((found, f"{type(error).__name__}: {first_line(error)}"))
            raise
        for part, elsewhere in parallel.gather((found, "")):
            if elsewhere:
                raise RuntimeError(elsewhere)
            found |= part
        return [found[index] for index in range(len(requests))]

    def _answers(self, requests: list[Request], override_bs: int | None) -> list[Answer]:
        answers: list[Answer] = super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)
        return answers


class SharedContextLM(QuietLM):
    """A quiet LM in which requests with equal contexts share the forward pass of the context."""

    def _answers(self, requests: list[Request], override_bs: int | None) -> list[Answer]:
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context), []).append(index)
        answers: dict[int, Answer] = {}
        alone: list[int] = []
        for shared, members in groups.items():
            continuations = [requests[index][2] for index in members]
            shared_answers = self._shared(list(shared), continuations) if len(members) > 1 else None
            if shared_answers is None:
                alone += members
                continue
            for index, answer in zip(members, shared_answers, strict=True):
                answers[index] = answer
                self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
        if alone:
            rest = super()._answers([requests[index] for index in alone], override_bs)
            answers.update(zip(alone, rest, strict=True))
        return [answers[index] for index in range(len(requests))]

    @torch.no_grad()
    def _shared(self, context: list[int], continuations: list[list[int]]) -> list[Answer] | None:
        """Answers to one context; None if it must be cut, or the model's cache isn't keys and values."""
        longest = max(len(continuation) for continuation in continuations)
        if len(context) + longest > self.max_length or "logits_to_keep" not in _arguments(self.model):
            return None
        read = self.model(input_ids=self._tensor([context]), use_cache=True, logits_to_keep=1)
        past = read.get("cache") or read.get("past_key_values")  # the newer and the older name
        if type(past) is not DynamicCache:
            return None
        count = len(continuations)
        logits = read.logits.expand(count, -1, -1)
        if longest > 1:
            past.batch_repeat_interleave(count)
            # Each answer without its last token, which predicts nothing; padding comes after shorter answers.
            padded = [continuation[:-1] + [0] * (longest - len(continuation)) for continuation in continuations]
            kept = "cache" if "cache" in _arguments(self.model) else "past_key_values"
            more = self.model(input_ids=self._tensor(padded), use_cache=True, **{kept: past}).logits
            logits = torch.cat([logits, more], 1)
        scores = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        answers = []
        for row, continuation in zip(scores, continuations, strict=True):
            tokens = torch.tensor(continuation, device=row.device)
            predictions = row[: len(tokens)]
            likely = predictions.gather(-1, tokens[:, None]).sum()
            answers.append((float(likely), bool((predictions.argmax(-1) == tokens).all())))
        return answers

    def _tensor(self, rows: list[list[int]]) -> Any:
        return torch.tensor(rows, dtype=torch.long, device=self.device)


def _arguments(model: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)
