"""A model that measures score: loaded when its first score is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import GENERATION_SETTINGS, TOKENIZER, Checkpoint
from darwinlm.model.families.generation import generation_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ScoredModel:
    """A model in a folder, as a whole.

    Args:
        checkpoint: Its files.
        dtype: Element type in which it computes.
        device: Where it computes.
        weights: Weights of a block by their names in it, if they differ from those in the files.
        digest: What identifies these weights.
        original: The model with its tokenizer and generation settings, if its own folder has none.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        *,
        weights: Callable[[int], dict[str, Tensor]] | None = None,
        digest: str | None = None,
        original: Checkpoint | None = None,
    ) -> None:
        assert (weights is None) == (digest is None), "other weights are identified by their digest"
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        self._weights, self._digest, self._original = weights, digest, original or checkpoint
        self._loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    @property
    def identity(self) -> dict[str, str]:
        """Its weights and configuration, tokenizer, and arithmetic."""
        return {
            "weights": self._digest or self.checkpoint.digest,
            "tokenizer": self._original.part(TOKENIZER),
            "generation": self._original.part(GENERATION_SETTINGS),
            "dtype": str(self.dtype),
            "device": self.device.type,
        }

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The model and its tokenizer."""
        if self._loaded is None:
            model = self.checkpoint.load(self.dtype, self.device, weights=self._weights)
            model.generation_config = generation_of(self._original.folder) or model.generation_config
            self._loaded = model, self._original.tokenizer()
        return self._loaded

    def release(self) -> None:
        """Forget the loaded model."""
        self._loaded = None
