"""vLLM in the environment of this interpreter."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

from darwinlm.engines.process import Generated


class Engine:
    """One model folder.

    Pruned models need no `allow_remote_code`, thanks to the plugin of this package.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str | None = None,
        context: int = 2048,
        allow_remote_code: bool = False,
        **_: Any,
    ) -> None:
        self.engine = LLM(
            model,
            dtype=dtype or "auto",
            max_model_len=context,
            trust_remote_code=allow_remote_code,
            enforce_eager=True,
            enable_prefix_caching=False,
            max_logprobs=-1,
            logprobs_mode="raw_logits",
            disable_log_stats=True,
        )

    def _request(self, tokens: list[int], new_tokens: int, **more: Any) -> Any:
        parameters = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True, **more)
        return self.engine.generate(TokensPrompt(prompt_token_ids=tokens), parameters, use_tqdm=False)[0]

    def logits(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        """Logits [t, v] in float32, from a request per position, since the engine only gives them for new tokens."""
        logits = []
        for end in range(1, len(tokens) + 1):
            scores = self._request(tokens[:end], 1, logprobs=-1).outputs[0].logprobs[0]
            row = np.full(max(scores) + 1, -np.inf, dtype=np.float32)
            for token, value in scores.items():
                row[token] = value.logprob
            logits.append(row)
        return np.stack(logits)

    def generate(self, tokens: list[int], new_tokens: int) -> Generated:
        """The greedy continuation, timed by a request for its first token and one for all."""
        begun = time.perf_counter()
        self._request(tokens, 1)
        first = time.perf_counter() - begun
        begun = time.perf_counter()
        generated = list(self._request(tokens, new_tokens).outputs[0].token_ids)
        return generated, first, max(time.perf_counter() - begun - first, 1e-9)
