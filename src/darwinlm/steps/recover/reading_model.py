"""The trained model, if it reads texts one by one: its distance to the dense model by its objective.

Letters: b sequences, t tokens in each, m residual width, i texts, c outputs of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from darwinlm.model.families.ending import gives_scores, scores_of
from darwinlm.model.objective.item_objective import Bank, ItemObjective
from darwinlm.steps.recover.trained_model import HeldOutSums, logits_of, run_dense, streams_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReadingLosses(nn.Module):
    """A model whose call returns losses of texts, as `trained_model.Losses` does for tokens."""

    def __init__(
        self, model: PreTrainedModel, teacher: PreTrainedModel, objective: ItemObjective, low: torch.dtype | None
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = (teacher,)  # a tuple, so that it isn't a submodule
        self.objective = objective
        self.low = low

    def forward(self, tokens: Tensor, dense: Tensor | None = None, *, held_out: bool = False) -> Tensor | HeldOutSums:
        """Mean distance of the texts in tokens [b, t], or its sum on held-out ones.

        `dense` are the dense model's states for the tokens, [b, t, m].
        """
        (teacher,) = self.teacher
        with torch.autocast(tokens.device.type, self.low, enabled=self.low is not None):
            expected = self._outputs(
                teacher, run_dense(teacher, tokens, marked=True) if dense is None else dense, tokens
            )
            outputs = self._outputs(self.model, streams_of(self.model, tokens, marked=True), tokens)
        distances = self.objective.distance(outputs, expected.detach(), Bank(expected.detach()))
        if held_out:
            return HeldOutSums(kl=float(distances.double().sum()), compared=len(distances))
        return distances.mean()

    def _outputs(self, model: PreTrainedModel, states: Tensor, tokens: Tensor) -> Tensor:
        """Outputs for the texts, [i, c] float32, from states after the last norm."""

        def head(rows: Tensor) -> Tensor:
            if gives_scores(model):
                return scores_of(model, rows)
            return rows if model.get_output_embeddings() is None else logits_of(model, rows)

        return self.objective.outputs(head, states, tokens)
