"""What a model ends with: the head of a language model, a head that gives scores, or nothing behind its last norm.

The blocks are the same. So a family's description serves all three, with other names around the blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from darwinlm.model.families.family import Ending, Family, class_prefix
from darwinlm.model.families.sentence_transformers import is_cross_encoder, is_sentence_transformer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

SCORES = "ForSequenceClassification"
AUTOS: Mapping[Ending, Any] = {
    "language": AutoModelForCausalLM,
    "scores": AutoModelForSequenceClassification,
    "states": AutoModel,
}
"""The Auto class of transformers for each ending."""
SUFFIXES: Mapping[Ending, str] = {"language": "ForCausalLM", "scores": SCORES, "states": "Model"}
"""How the names of their classes end."""
BASE = "model."
"""What a model's class puts before the names of the tensors of its decoder."""


def ending_of(plain: Mapping[str, object], folder: Path) -> Ending:
    """What the model in a folder ends with, by its config.json and the files of sentence-transformers beside it."""
    architectures = plain.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if architecture.endswith(SCORES):
        return "scores"
    if is_sentence_transformer(folder) and not is_cross_encoder(folder):
        return "states"
    return "states" if architecture.endswith(SUFFIXES["states"]) else "language"


def with_ending(family: Family, ending: Ending) -> Family:
    """A family's description for models with another ending than that of a language model."""
    if ending == "scores" and family.bidirectional:
        names = {name: f"{family.encoder}.{getattr(family, name)}" for name in ("layers", "embedding")}
        return family.model_copy(update={"ending": ending, **names})
    if ending == "scores":
        return family.model_copy(update={"ending": ending, "head": "score"})
    if ending == "states":
        names = {name: getattr(family, name).removeprefix(BASE) for name in ("layers", "embedding")}
        return family.model_copy(update={"ending": ending, "head": "", **names})
    return family


def name_without_head(name: str) -> str | None:
    """Name that a stored tensor has in a model without a head; None for the head of a language model."""
    return None if name.startswith("lm_head.") else name.removeprefix(BASE)


def stock_class(family: Family) -> str:
    """Name of the family's class in transformers. Raises LookupError if this release has none."""
    if family.ending == "language":
        return f"{class_prefix(family.model_type)}ForCausalLM"
    names = AUTOS[family.ending]._model_mapping._model_mapping
    name = names[family.model_type]
    return str(name if isinstance(name, str) else name[0])


def outputs_of(model: PreTrainedModel, ending: Ending, **call: object) -> Tensor:
    """What a model gives for every token: logits [b, t, v], scores [b, t, c], or states [b, t, m] after the last norm.

    `call` are the arguments of its call. The classes with scores would select a token themselves.
    """
    if ending == "language":
        logits: Tensor = model(**call).logits
        return logits
    states: Tensor = model.base_model(**call).last_hidden_state
    return states if ending == "states" else scores_of(model, states)


def gives_scores(model: PreTrainedModel) -> bool:
    """Whether a model has a head of scores."""
    return hasattr(model, "score") or hasattr(model, "classifier")


def scores_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Scores [..., c] that a model's head would give for each of some states [..., m]."""
    if hasattr(model, "score"):
        scores: Tensor = model.score(states)
        return scores
    # An encoder's head reads the first token of a sequence, and so does its pooler.
    rows = states.reshape(-1, 1, states.shape[-1])
    pooler = model.base_model.pooler
    of_sequences: Tensor = model.classifier(rows if pooler is None else pooler(rows))
    return of_sequences.view(*states.shape[:-1], -1)
