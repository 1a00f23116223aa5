"""Models that read in llama.cpp: how a file pools their embeddings, and how it gives their score.

llama.cpp pools the states of a text in any architecture, by a key of the file, and runs nothing behind the pooling. A
score is what its server's `--reranking` returns, one number for each pair. Where the number comes from depends on the
architecture, as its field `scores` says:

- `first`: the first number of the last token's state. `score_basis.py` makes that the score. The file names as many
  labels as the state has numbers, because llama.cpp takes that for the length of what it gives for each text.
- `softmax`: the first of the probabilities that a matrix `cls.output.weight` and a softmax give. A single score is
  compared with a row of zeros there, so the probability is the sigmoid of the score, as CrossEncoder gives it.

Letters: i texts, c outputs of each, m residual width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from darwinlm.formats.gguf.rope import UnsupportedError
from darwinlm.model.families.sentence_transformers import modules_of
from darwinlm.model.objective.chosen import objective_of

if TYPE_CHECKING:
    from darwinlm.model.families.architecture import Architecture
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.objective.item_objective import ItemObjective

POOLINGS = {"lasttoken": "LAST", "mean": "MEAN", "cls": "CLS"}
"""Names in llama.cpp of the ways in which embeddings are pooled."""
RANK = "RANK"
"""Name of the pooling of models that give a score."""
SCORES = "cls.output.weight"
SCORE, BESIDE = "score", "not a score"
"""Labels of the first number of a state and of the others."""
NOT_RUN = frozenset({"Dense", "LayerNorm"})
"""Modules of sentence-transformers that change an embedding more than its length."""
FOLDER = "Load its folder with CrossEncoder or SentenceTransformer of sentence-transformers"
SINCE = (
    "the score needs a release of llama.cpp from October 2026 or later (b11739 was tested): older ones take the first "
    "token of a text instead of the last one in this architecture, and rank at random"
)


@dataclass(frozen=True)
class Reading:
    """What a file of a model that reads gives.

    Attributes:
        pooling: Name of one of `gguf.PoolingType`.
        probabilities: Whether a softmax gives its score.
        labels: Names of its outputs, if it gives scores; the first one is the score.
    """

    pooling: str
    probabilities: bool = False
    labels: tuple[str, ...] = ()

    @property
    def scores(self) -> bool:
        """Whether it gives scores."""
        return self.pooling == RANK

    @property
    def in_basis(self) -> bool:
        """Whether its score is the first number of a state."""
        return self.scores and not self.probabilities

    def given(self, outputs: Tensor) -> Tensor:
        """What llama.cpp gives, [i, ·], where the objective of the model compares `outputs`, [i, c]."""
        if not self.scores:
            return outputs
        if self.probabilities:
            return torch.softmax(_both(outputs.T).T, 1)
        return _difference(outputs.T)[:, None]


def reading_of(checkpoint: Checkpoint, architecture: Architecture) -> Reading | None:
    """How an architecture gives what a model gives; None for a model that writes.

    A language model that judges pairs is one that writes where llama.cpp has no scores for it. Raises UnsupportedError.
    """
    ending = checkpoint.family.ending
    if ending == "states":
        for module in modules_of(checkpoint.folder):
            if module.kind in NOT_RUN:
                raise UnsupportedError(
                    f"llama.cpp runs no module {module.kind} behind the pooling, and would give other embeddings",
                    FOLDER,
                )
        return Reading(POOLINGS[cast("ItemObjective", objective_of(checkpoint)).pooling])
    if ending == "language" and (not checkpoint.answers or architecture.scores is None):
        return None
    if ending == "scores" and int(checkpoint.config.num_labels) != 1:
        raise UnsupportedError(f"it has {checkpoint.config.num_labels} labels, and llama.cpp gives one score", FOLDER)
    if architecture.scores is None:
        raise UnsupportedError(f"llama.cpp gives no score in its architecture {architecture.name}", FOLDER)
    if architecture.scores == "first":
        return Reading(RANK, labels=(SCORE, *[BESIDE] * (int(checkpoint.config.hidden_size) - 1)))
    labels = ("yes", "no") if checkpoint.answers else ("relevant", "not relevant")
    return Reading(RANK, probabilities=True, labels=labels)


def score_rows(checkpoint: Checkpoint) -> Tensor:
    """The matrix [2, m] of which a softmax gives the probabilities."""
    return _both(_head(checkpoint))


def score_row(checkpoint: Checkpoint) -> Tensor:
    """The vector [m] whose product with a state is the score, or by how much more likely the first answer is."""
    return _difference(_head(checkpoint))


def _head(checkpoint: Checkpoint) -> Tensor:
    """Rows of the head that give the outputs, [c, m] float32."""
    name = f"{checkpoint.family.head}.weight"
    if not checkpoint.answers:
        return checkpoint.read(name, dtype=torch.float32)[""]
    if name not in checkpoint.tensors:  # tied
        name = f"{checkpoint.family.embedding}.weight"
    return torch.cat(
        [checkpoint.rows(name, torch.tensor([answer]), dtype=torch.float32) for answer in checkpoint.answers]
    )


def _both(rows: Tensor) -> Tensor:
    """Two rows, of which the second is zero if there is only one."""
    return rows if len(rows) == 2 else torch.cat([rows, torch.zeros_like(rows)])


def _difference(rows: Tensor) -> Tensor:
    """The first row without the second one."""
    return rows[0] - rows[1] if len(rows) == 2 else rows[0]
