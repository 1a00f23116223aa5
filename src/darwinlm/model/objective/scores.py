"""Classifiers and rerankers: their scores are kept.

The scores are those of a head with one or several labels, or a language model's logits of the tokens that it answers
with, such as yes and no.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from darwinlm.model.objective.distances import (
    label_kl,
    label_probe,
    separate_kl,
    separate_probe,
    signs,
    squared_error,
)
from darwinlm.model.objective.item_objective import Bank, ItemObjective

Labels = Literal["score", "numbers", "one", "several"]
"""What a model gives: a number, several numbers, a distribution over labels, or labels that each apply or don't."""


@dataclass(frozen=True)
class Scores(ItemObjective):
    """Scores of texts or pairs.

    Attributes:
        labels: What the scores mean, and so how they are compared.
        answers: Tokens whose logits are the scores, if the model is a language model; the first one means yes.
    """

    labels: Labels = "score"
    answers: tuple[int, ...] = ()

    name: ClassVar[str] = "scores"
    unit: ClassVar[str] = "distance of scores"

    def words(self) -> str:
        """See `Objective.words`."""
        if self.answers:
            return "the probabilities of its answers"
        return {
            "score": "its score",
            "numbers": "its scores",
            "one": "its distribution over labels",
            "several": "its scores of labels",
        }[self.labels]

    def chosen(self, outputs: Tensor) -> Tensor:
        """See `ItemObjective.chosen`."""
        return outputs[:, list(self.answers)] if self.answers else outputs

    def distance(self, outputs: Tensor, dense: Tensor, bank: Bank) -> Tensor:
        """See `ItemObjective.distance`."""
        del bank
        if self.labels in ("score", "numbers"):
            return squared_error(outputs, dense)
        return {"one": label_kl, "several": separate_kl}[self.labels](outputs, dense)

    def probe(self, outputs: Tensor, keys: Tensor) -> Tensor:
        """See `ItemObjective.probe`."""
        if self.labels == "score":
            return outputs.sum(-1)
        sign = signs(keys, outputs.shape[-1])
        if self.labels == "numbers":
            return (outputs * sign).sum(-1)
        return {"one": label_probe, "several": separate_probe}[self.labels](outputs, sign)

    def ranks(self, count: int) -> bool:
        """Whether texts can be ranked by the model's `count` outputs of each."""
        return self.labels == "score" or bool(self.answers) or (self.labels == "one" and count == 2)

    def relevance(self, outputs: Tensor) -> Tensor:
        """One number for each text by which texts are ranked, [i], from scores [i, c]."""
        if self.labels == "score":
            return outputs[:, 0]
        if self.answers:
            return outputs[:, 0] - outputs[:, 1]
        return torch.log_softmax(outputs, -1)[:, -1]
