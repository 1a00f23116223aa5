"""transformers on PyTorch, the reference engine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from darwinlm.engines.process import Generated
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.compute import DTYPES


class Engine:
    """One model folder. Without a `dtype`, the checkpoint's is used."""

    def __init__(
        self,
        model: str,
        *,
        threads: int = 1,
        dtype: str | None = None,
        device: str = "cpu",
        allow_remote_code: bool = False,
        **_: Any,
    ) -> None:
        torch.set_num_threads(threads)
        self.checkpoint = Checkpoint.open(Path(model), allow_remote_code=allow_remote_code)
        self.model = self.checkpoint.load(DTYPES[dtype] if dtype else self.checkpoint.dtype, device)

    @torch.no_grad()
    def generate(self, tokens: list[int], new_tokens: int) -> Generated:
        """The greedy continuation."""
        ids = self._ids(tokens)
        begun = time.perf_counter()
        output = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        generated = [int(token)]  # also synchronises with the device
        first = time.perf_counter()
        while len(generated) < new_tokens:
            output = self.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            generated.append(int(token))
        return generated, first - begun, time.perf_counter() - first

    def _ids(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor([tokens], device=self.model.device)
