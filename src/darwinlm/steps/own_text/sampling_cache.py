"""A key-value cache of fixed size whose rows are at different positions, for continuous batching.

Letters: B rows, H key-value heads, L columns, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer


class RowCache(Cache):  # type: ignore[misc]
    """Keys and values [B, H, L, D] of every layer; each row has its own position.

    Every step adds one token to every row at `positions` [B] and attends to the first `columns` columns. `prompt` is
    the cache of a single sequence that all rows begin with, from the same model.
    """

    def __init__(self, prompt: Cache, rows: int, length: int, device: torch.device) -> None:
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.columns = length
        super().__init__(layers=[_RowLayer(self, layer, rows, length) for layer in prompt.layers])

    def mask(self) -> Tensor:
        """Which columns each row sees, [B, 1, 1, columns] bool."""
        columns = torch.arange(self.columns, device=self.positions.device)
        return (columns <= self.positions[:, None])[:, None, None]

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only, by their indices."""
        self.positions = self.positions[rows]
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]


class _RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of a `RowCache`. A layer without attention stays empty."""

    is_sliding = False

    def __init__(self, cache: RowCache, prompt: CacheLayerMixin, rows: int, length: int) -> None:
        super().__init__()
        self.cache, self.length = cache, length
        if prompt.is_initialized:
            self.keys, self.values = (_beginning(states, rows, length) for states in (prompt.keys, prompt.values))
            self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Never needed: a layer that stores anything has stored the prompt."""
        raise AssertionError

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Store the keys and values [B, H, 1, D] of the new tokens; returns those of all columns."""
        positions = self.cache.positions
        rows = torch.arange(len(positions), device=positions.device)
        self.keys[rows, :, positions] = key_states[:, :, 0]
        self.values[rows, :, positions] = value_states[:, :, 0]
        return self.keys[:, :, : self.cache.columns], self.values[:, :, : self.cache.columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys."""
        del query_length
        return self.cache.columns, 0

    def get_seq_length(self) -> int:
        """Number of columns in use."""
        return self.cache.columns

    def get_max_length(self) -> int:
        """Number of columns."""
        return self.length


def _beginning(prompt: Tensor, rows: int, length: int) -> Tensor:
    """Room for all rows [B, H, L, D] that begin with a prompt [1, H, l, D]."""
    room = prompt.new_zeros(rows, prompt.shape[1], length, prompt.shape[3])
    room[:, :, : prompt.shape[2]] = prompt
    return room


def takes_rows(prompt: Cache, length: int) -> bool:
    """Whether every layer of a model's cache is plain keys and values, with no window shorter than `length`."""
    layers = getattr(prompt, "layers", [])
    kinds = {DynamicLayer: True, DynamicSlidingWindowLayer: False}
    return bool(layers) and all(
        type(layer) in kinds and (kinds[type(layer)] or layer.sliding_window >= length) for layer in layers
    )
