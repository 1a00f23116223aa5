"""Model families as data: one small YAML file for each family beside this module.

`parts.py` describes the sub-layers. A file may name a family in `like`: fields that it leaves out, of its own, of a
sub-layer and its experts, or of a `gguf` without a name and its keys and tensors, are those of the other one.
`family_of` finds the description for a configuration.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Literal

import yaml

from darwinlm.model.families.architecture import Architecture
from darwinlm.model.families.parts import KINDS, Attention, Closed, Mixer, Mlp, ModuleKind, Part, Tail
from darwinlm.runtime.errors import FamilyError
from darwinlm.runtime.json_values import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from darwinlm.model.families.modeling_darwinlm import Definition

PREFIX = "darwinlm_"

Ending = Literal["language", "scores", "states"]
"""What models end with: a head over the vocabulary, a head of scores, or nothing behind the last norm (`ending.py`)."""


class Family(Closed):
    """One architecture of transformers."""

    title: str
    """Usual name of the models, for the documentation."""
    model_type: str
    """Model type in config.json, which is the name of the file unless there is a switch."""
    inside: tuple[str, ...] = ()
    """Model types that contain such a language model and other parts, such as a vision tower."""
    layers: str = "model.layers"
    """Name of the list of blocks."""
    embedding: str = "model.embed_tokens"
    """Token embedding."""
    head: str = "lm_head"
    """Output projection to the vocabulary, or to scores; empty if the models have none."""
    ending: Ending = "language"
    """What its models end with; files describe those of language models."""
    bidirectional: bool = False
    """Whether a token sees those behind it too, as in encoders. Their model must take a mask of four dimensions, or one
    for each type of layers. Only models without a head are read, or also those with scores (`encoder`)."""
    before_positions: str | None = None
    """Configuration field for the number before the first position, if positions don't begin with 0 (RoBERTa)."""
    encoder: str = ""
    """Name of the encoder inside the class that gives scores, if models of this class are pruned too. Its head,
    `classifier`, reads the state of the first token, which in BERT passes the encoder's pooler first."""
    segments: bool = False
    """Whether tokens of the second text of a pair, behind the first separator, have another embedding added (BERT)."""
    attention: Attention
    """Names of the attention."""
    mixer: Mixer | None = None
    """Names of the token mixer that some blocks have instead of an attention."""
    mlp: Mlp
    """Names of the MLP."""
    tail: Tail | None = None
    """Names of what follows the MLP."""

    gguf: Architecture | None = None
    """Its architecture in llama.cpp, if there is one."""
    engines: tuple[Literal["mlx", "vllm"], ...] = ()
    """Other engines in which tests run its models of unequal layers. They are not taken from the family in `like`."""
    exact: tuple[str, ...] = ()
    """Name patterns of weights that transformers creates in float32 without listing them."""
    older_rope: dict[str, str] | None = None
    """Configuration fields, from before transformers 5, for the rotary base of each type of layers (`full_attention`),
    if they aren't those of most families."""
    switch: str | None = None
    """Configuration field that is set in this family, and not in the other of its model type. Layers without an MLP
    set it to zero, so that they have no experts."""

    @property
    def key(self) -> str:
        """Name of its file."""
        return self.model_type if self.switch is None else f"{self.model_type}_experts"

    @property
    def pruned_type(self) -> str:
        """Model type in config.json of its models whose layers differ."""
        return PREFIX + self.model_type

    def definition(self) -> Definition:
        """What the modelling file's classes need to know about the family. Raises LookupError as `class_prefix`."""
        from transformers.models.auto.configuration_auto import model_type_to_module_name

        from darwinlm.model.families.modeling_darwinlm import Definition

        if self.switch is not None:
            return families()[self.model_type].definition()
        parts = (self.attention, self.mlp)
        return Definition(
            class_prefix(self.model_type),
            model_type_to_module_name(self.model_type),
            infix="Text" if self.model_type.endswith("_text") else "",
            norms=tuple(tuple(norm for norm in part.norms if norm != part.sum_norm) for part in parts),
            names=(self.attention.name, self.mlp.name),
            pair=self.mlp.pair,
            shared=self.mlp.dependent,
            counts=self.attention.reused is not None,
            tail=self.tail.width if self.tail is not None else "",
            layers=self.layers.removeprefix(f"{self.encoder or 'model'}."),
            chains=(self.attention.chain, self.mlp.chain),
            sum_norms=tuple(part.sum_norm for part in parts if part.sum_norm is not None),
            causal=not self.bidirectional,
            encoder=self.encoder,
            narrowed=self.attention.narrowed,
        )

    def residual_scale(self, config: PreTrainedConfig) -> float:
        """Factor a on every sub-layer's output before it is added to the residual stream (Granite).

        Least-squares fits of an output projection divide their target by it.
        """
        return float(getattr(config, "residual_multiplier", 1.0))

    def applies(self, config: PreTrainedConfig) -> bool:
        """Whether the switch is set in any layer."""
        if self.switch is None:
            return False
        layers = getattr(config, "per_layer_config", None) or [config]
        return any(getattr(layer, self.switch, None) for layer in layers)

    @property
    def kinds(self) -> tuple[ModuleKind, ...]:
        """Kinds of modules of its blocks."""
        return tuple(kind for kind in KINDS if kind in ("attention", "mlp") or getattr(self, kind) is not None)

    def cut_kinds(self, config: PreTrainedConfig, block: int) -> list[ModuleKind]:
        """Kinds of the modules of a block that are cut or removed."""
        sources = self.attention.sources(config)
        kept = self.attention.cut == "never" or block in sources or block in sources.values()
        return ["mlp"] if kept else ["attention", "mlp"]

    def linked(self, config: PreTrainedConfig) -> bool:
        """Whether blocks have inputs besides the residual stream: per-layer embeddings, or keys of earlier blocks."""
        per_layer = self.tail is not None and getattr(config, self.tail.width)
        return bool(per_layer) or bool(self.attention.sources(config))

    def module(self, kind: ModuleKind) -> Part:
        """The names of one of `kinds`."""
        part: Part | None = getattr(self, kind)
        assert part is not None
        return part


def is_custom(config: PreTrainedConfig) -> bool:
    """Whether a configuration is one of ours, so that the model needs the modelling file beside it."""
    return str(config.model_type).startswith(PREFIX)


def class_prefix(model_type: str) -> str:
    """Prefix of the classes of a model type in transformers: `Llama` for LlamaForCausalLM.

    Raises LookupError if this release of transformers lacks the model type.
    """
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES  # which doesn't import PyTorch

    return str(CONFIG_MAPPING_NAMES[model_type]).removesuffix("Config").removesuffix("Text")


def pruned_class(family: Family) -> str:
    """Name of the class of a family's models of unequal layers. Raises LookupError as `class_prefix`."""
    suffix = {"language": "ForCausalLM", "scores": "ForSequenceClassification", "states": "Model"}[family.ending]
    return f"Darwin{class_prefix(family.model_type)}{suffix}"


DATA = resources.files("darwinlm.model.families") / "data"
NOT_INHERITED = ("engines",)
"""Fields that say what was tested with a family, and so nothing about another that is `like` it."""


@cache
def _description(name: str) -> JsonObject:
    """Contents of a family's file, completed by those of the family it is `like`."""
    fields: JsonObject = yaml.safe_load((DATA / f"{name}.yaml").read_text(encoding="utf-8"))
    like = _description(fields.pop("like")) if "like" in fields else {}
    base = {field: value for field, value in like.items() if field not in NOT_INHERITED}
    return _merged(base, fields if "switch" in fields else {"model_type": name, **fields})


def _merged(base: JsonObject, fields: JsonObject) -> JsonObject:
    """`base` overridden by `fields`. Parts are merged in turn, but `gguf` only if `fields` doesn't name another one."""
    parts = [part for part in (*KINDS, "experts", "gguf", "keys", "tensors") if base.get(part) and fields.get(part)]
    merged = {part: _merged(base[part], fields[part]) for part in parts if part != "gguf" or "name" not in fields[part]}
    return base | fields | merged


@cache
def families() -> dict[str, Family]:
    """All known families by model type; those with a switch by another name."""
    names = sorted(entry.name.removesuffix(".yaml") for entry in DATA.iterdir() if entry.name.endswith(".yaml"))
    return {name: Family.model_validate(_description(name)) for name in names}


def family_of(config: PreTrainedConfig) -> Family:
    """The family of a transformers configuration, including our own configurations.

    Raises:
        FamilyError: No description exists for the model type.
    """
    model_type = str(config.model_type).removeprefix(PREFIX)
    family = families().get(model_type)
    if family is None:
        known_types = ", ".join(dict.fromkeys(family.model_type for family in families().values()))
        raise FamilyError(
            f"the model type '{model_type}' isn't known; known are {known_types}. A new family is one YAML file in "
            "darwinlm/families/data (docs/extending.md)"
        )
    mixture = families().get(f"{model_type}_experts")
    return mixture if mixture is not None and mixture.applies(config) else family
