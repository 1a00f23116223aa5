"""Which objective a model has, by its files: nothing else chooses it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from darwinlm.model.families.sentence_transformers import pooling_of
from darwinlm.model.objective.embeddings import Embeddings
from darwinlm.model.objective.item_objective import Pooling
from darwinlm.model.objective.next_token import NextTokens
from darwinlm.model.objective.scores import Labels, Scores

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.objective.objective import Objective


def objective_of(model: Checkpoint) -> Objective:
    """What of a dense model must be kept. Raises CheckpointError if its pooling isn't known."""
    if model.family.ending == "states":
        default = "mean" if model.family.bidirectional else "lasttoken"
        return Embeddings(cast("Pooling", pooling_of(model.folder) or default))
    if model.family.ending == "scores":
        count = int(model.config.num_labels)
        problem = getattr(model.config, "problem_type", None)
        labels: Labels = "score" if count == 1 else "numbers" if problem == "regression" else "one"
        if problem == "multi_label_classification":
            labels = "several"
        if model.family.bidirectional:
            return Scores("cls", labels=labels)
        return Scores(padding=getattr(model.config, "pad_token_id", None), labels=labels)
    if model.answers:
        return Scores(labels="one", answers=model.answers)
    return NextTokens()
