"""Embedders: the direction of each text's embedding is kept, and the order of its similarities to other texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from darwinlm.model.objective.distances import embedding_distance, embedding_probe, signs
from darwinlm.model.objective.item_objective import Bank, ItemObjective


@dataclass(frozen=True)
class Embeddings(ItemObjective):
    """Embeddings of texts."""

    name: ClassVar[str] = "embeddings"
    unit: ClassVar[str] = "distance of embeddings"

    def words(self) -> str:
        """See `Objective.words`."""
        tokens = {"lasttoken": "the last token", "mean": "all tokens", "cls": "the first token"}[self.pooling]
        return f"the embedding of {tokens}"

    def distance(self, outputs: Tensor, dense: Tensor, bank: Bank) -> Tensor:
        """See `ItemObjective.distance`."""
        return embedding_distance(outputs, dense, bank.outputs, bank.same(len(outputs)))

    def probe(self, outputs: Tensor, keys: Tensor) -> Tensor:
        """See `ItemObjective.probe`."""
        return embedding_probe(outputs, signs(keys, outputs.shape[-1]))
