"""What a model family looks like, as data: one small YAML file a family beside this module.

An architecture is described by the names of its sub-layers and of the projections in them; how they are cut follows
from the names. `family_of` finds the description for a configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from darwinlm.errors import FamilyError

ModuleKind = Literal["attention", "mlp"]
RowUnit = Literal["query", "key_value", "channel"]
KINDS: tuple[ModuleKind, ...] = ("attention", "mlp")
PREFIX = "darwinlm_"


class Closed(BaseModel):
    """A closed, frozen description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _by_name(places: Iterable[tuple[str, RowUnit]]) -> dict[str, list[RowUnit]]:
    found: dict[str, list[RowUnit]] = {}
    for name, rows in places:
        found.setdefault(name, []).append(rows)
    return found


class SubLayer(Closed):
    """What attention and MLP have in common: x + a * post_norm(output(...(norm(x)))), a being 1 in most families."""

    name: str
    """The sub-layer in the block."""
    output: str
    """Projection whose columns belong to query heads (attention) or are channels (MLP)."""
    norms: tuple[str, ...]
    """Norms of the block that go when the sub-layer goes. The first is applied to its input."""
    post_norm: str | None = None
    """The one of `norms` that the output projection's result goes through before it is added to the residual stream
    (Gemma 2 and 3). It maps zero to zero. A least-squares fit of the projection has its target before this norm."""

    bias: str | None = None
    """Field of the configuration that gives each projection of the sub-layer a bias, if there is one."""

    @model_validator(mode="after")
    def _post_norm_goes_too(self) -> Self:
        if self.post_norm is not None and self.post_norm not in self.norms[1:]:
            raise ValueError(f"post_norm is {self.post_norm}, which must be among norms, after the first")
        return self


class Attention(SubLayer):
    """Names inside a block that make up its attention."""

    untouched: bool = False
    """Never cut: in mixtures of experts only the MLPs are (DarwinLM's section on them does the same)."""

    query: tuple[str, ...]
    """Projections whose rows belong to query heads."""
    key_value: tuple[str, ...]
    """Projections whose rows belong to KV heads. A name that stands here and in `query`, or twice, is one fused tensor:
    its rows are those of each place, queries first."""

    @property
    def segments(self) -> dict[str, list[RowUnit]]:
        """What the rows of each projection into the attention belong to: one entry, or several where it is fused."""
        return _by_name([*((name, "query") for name in self.query), *((name, "key_value") for name in self.key_value)])


class Experts(Closed):
    """Names inside the MLP of a mixture of experts, all of which are cut to one width in a block."""

    name: str
    """What holds all experts, each weight as one tensor whose first dimension counts them."""
    router: str
    """What chooses among them: each of its tensors has a row for every expert, and its softmax makes the weights. What
    else the mixture has, such as a shared expert, stays as it is."""
    normalised: bool | str = True
    """Whether the weights of the chosen experts add up to one, or the field of the configuration that says so. Where
    they don't, they are shares of the softmax over all experts."""
    count: str
    """Field of the configuration that holds the number of experts."""
    chosen: str = "num_experts_per_tok"
    """Field of the configuration that holds how many are chosen for a token: fewer can't be kept."""
    inputs: tuple[str, ...]
    """Tensors [experts, rows, columns] whose rows are channels. A name that stands twice is one fused tensor."""
    output: str
    """Tensor [experts, rows, columns] whose columns are channels."""
    width: str
    """Field of the configuration that holds the channels of an expert."""

    @property
    def segments(self) -> dict[str, list[RowUnit]]:
        """What the rows of each tensor into the experts belong to: one entry, or several where it is fused."""
        return _by_name((name, "channel") for name in self.inputs)

    def counted(self, name: str) -> bool:
        """Whether the first dimension of a tensor inside the MLP counts experts."""
        return name.rpartition(".")[0] in (self.name, self.router)

    def sums_to_one(self, config: Any) -> bool:
        """Whether the weights of the chosen experts add up to one."""
        return bool(getattr(config, self.normalised)) if isinstance(self.normalised, str) else self.normalised


class Mlp(SubLayer):
    """Names inside a block that make up its MLP."""

    inputs: tuple[str, ...]
    """Projections whose rows are channels. A name that stands twice is one fused tensor: all rows of the one, then all
    of the other."""
    width: str = "intermediate_size"
    """Field of the configuration that holds the number of channels."""
    experts: Experts | None = None
    """How the experts are named in blocks whose MLP is a mixture of them."""

    @property
    def segments(self) -> dict[str, list[RowUnit]]:
        """What the rows of each projection into the MLP belong to: one entry, or several where it is fused."""
        return _by_name((name, "channel") for name in self.inputs)


class Stored(Closed):
    """How checkpoints name tensors inside a block, where that isn't how the model names them."""

    renamed: dict[str, str] = {}
    """A part of a stored name, between dots, and what the model calls it."""
    experts: dict[str, tuple[str, ...]] = {}
    """A tensor over all experts, and the names of the projections of a single expert that it is put together from:
    `gate_up_proj: [w1, w3]` for `experts.0.w1.weight`, `experts.0.w3.weight` and so on."""


class Family(Closed):
    """One architecture of transformers."""

    model_type: str
    """As config.json states it."""
    class_prefix: str
    """Of the classes in transformers: `Llama` for LlamaForCausalLM."""
    class_infix: str = ""
    """What follows the prefix in the names of the configuration and the decoder: `Text` for Gemma3TextModel."""
    package: str = ""
    """The package in `transformers.models`, where it isn't called like the model type."""
    layers: str = "model.layers"
    """The list of blocks."""
    embedding: str = "model.embed_tokens"
    """Token embedding."""
    final_norm: str = "model.norm"
    """Norm before the head."""
    head: str = "lm_head"
    """Output projection to the vocabulary."""
    residual_multiplier: str | None = None
    """Field of the configuration that holds the number a by which every sub-layer's output is multiplied before it is
    added to the residual stream (Granite); none means 1. A least-squares fit of an output projection divides its
    target by it."""
    attention: Attention
    """How attention is named."""
    mlp: Mlp
    """How the MLP is named."""

    stored: Stored = Stored()
    """Other names in checkpoints."""

    @property
    def class_names(self) -> tuple[str, str, str]:
        """Class prefix, package and class infix: what the modelling file makes its classes from."""
        return self.class_prefix, self.package or self.model_type, self.class_infix

    def residual_scale(self, config: Any) -> float:
        """The number that every sub-layer's output is multiplied by before it is added to the residual stream."""
        return 1.0 if self.residual_multiplier is None else float(getattr(config, self.residual_multiplier))

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
        FamilyError: No description exists for the model type; the message says what a new one must hold.
    """
    model_type = str(config.model_type).removeprefix(PREFIX)
    try:
        return families()[model_type]
    except KeyError:
        known = ", ".join(families())
        fields = ", ".join(_required(Family))
        raise FamilyError(
            f"the model type '{model_type}' isn't known; known are {known}. A new family is one YAML file in "
            f"darwinlm/families/data with the fields {fields}"
        ) from None


def _required(description: type[Closed]) -> list[str]:
    """Names of the fields that a description must have, with those of the descriptions inside it."""
    names = []
    for name, field in description.model_fields.items():
        if field.is_required():
            inner = field.annotation
            nested = isinstance(inner, type) and issubclass(inner, Closed)
            names.append(f"{name} ({', '.join(_required(inner))})" if nested else name)  # type: ignore[arg-type]
    return names
