"""What a model family looks like, as data: one small YAML file a family beside this module.

An architecture is described by the names of its sub-layers and of the projections in them; how they are cut follows
from the names. `family_of` finds the description for a configuration.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict

from darwinlm.errors import FamilyError

ModuleKind = Literal["attention", "mlp"]
KINDS: tuple[ModuleKind, ...] = ("attention", "mlp")
PREFIX = "darwinlm_"


class Closed(BaseModel):
    """A closed, frozen description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Attention(Closed):
    """Names inside a block that make up its attention."""

    name: str
    """The sub-layer in the block."""
    query: tuple[str, ...]
    """Projections whose rows belong to query heads."""
    key_value: tuple[str, ...]
    """Projections whose rows belong to KV heads."""
    output: str
    """Projection whose columns belong to query heads."""
    norms: tuple[str, ...]
    """Norms of the block that go when the attention goes."""


class Mlp(Closed):
    """Names inside a block that make up its MLP."""

    name: str
    """The sub-layer in the block."""
    inputs: tuple[str, ...]
    """Projections whose rows are channels."""
    output: str
    """Projection whose columns are channels."""
    norms: tuple[str, ...]
    """Norms of the block that go when the MLP goes."""


class Family(Closed):
    """One architecture of transformers."""

    model_type: str
    """As config.json states it."""
    class_prefix: str
    """Of the classes in transformers: `Llama` for LlamaForCausalLM."""
    layers: str = "model.layers"
    """The list of blocks."""
    embedding: str = "model.embed_tokens"
    """Token embedding."""
    final_norm: str = "model.norm"
    """Norm before the head."""
    head: str = "lm_head"
    """Output projection to the vocabulary."""
    attention: Attention
    """How attention is named."""
    mlp: Mlp
    """How the MLP is named."""

    def module(self, kind: ModuleKind) -> Attention | Mlp:
        """The names of one kind of module."""
        return self.attention if kind == "attention" else self.mlp


@cache
def families() -> dict[str, Family]:
    """All known families by model type."""
    folder = resources.files("darwinlm.families") / "data"
    found = {}
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".yaml"):
            family = Family.model_validate(yaml.safe_load(entry.read_text(encoding="utf-8")))
            found[family.model_type] = family
    return found


def family_of(config: Any) -> Family:
    """The family of a transformers configuration, ours included.

    Raises:
        FamilyError: no description exists for the model type; the message says what a new one must hold.
    """
    model_type = str(config.model_type).removeprefix(PREFIX)
    try:
        return families()[model_type]
    except KeyError:
        known = ", ".join(families())
        fields = ", ".join(name for name, field in Family.model_fields.items() if field.is_required())
        raise FamilyError(
            f"the model type '{model_type}' isn't known; known are {known}. A new family is one YAML file in "
            f"darwinlm/families/data with the fields {fields}"
        ) from None
