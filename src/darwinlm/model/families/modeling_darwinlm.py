# SPDX-License-Identifier: Apache-2.0
"""Decoder-only models and encoders whose layers differ in size: head counts, MLP widths, missing sub-layers.

This file is saved beside every such checkpoint and only needs transformers >= 5.16. One line defines a family, such as
`define_classes(Definition("Llama", "llama"))`; it is the last line of a checkpoint's copy.

The sizes are in `config.per_layer_config`, the per-layer overrides of transformers. Everything else (rotary embedding,
masks, caches, generation, attention kernels) is the family's own code.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from torch import nn

try:
    from huggingface_hub.dataclasses import strict
    from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
    from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError as AmbiguousError
except ImportError as error:
    raise ImportError(
        "the layers of this model differ in size, which needs transformers 5.16 or newer, and this is "
        f"{transformers.__version__}: pip install -U 'transformers>=5.16'"
    ) from error

if TYPE_CHECKING:
    from transformers import Cache

    Optional = type[PreTrainedModel] | None
    Classes = tuple[type[PreTrainedConfig], type[PreTrainedModel], Optional, Optional]

SUBLAYERS = ("attention", "mlp")
Norms = Sequence[Sequence[str]]  # of a layer: norms removed with its attention, norms removed with its MLP
AUTOS = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
}
WHOLE = {"AutoConfig": "WholeConfig", "AutoModelForImageTextToText": "ForConditionalGeneration"}  # with further parts
NO_LAYERS = {"num_hidden_layers": 0}
LayerOverrides = Mapping[int | str, dict[str, Any]]
"""Fields of the layers that differ from the whole configuration, by the layer's number."""


class Definition(NamedTuple):
    """What the classes of a family need to know about it.

    Attributes:
        prefix: Prefix of the family's class names, "Llama"; the new ones begin with "DarwinLlama".
        module: The family's package in `transformers.models`, "llama".
        infix: Infix in the names of the text-only parts of a multimodal family: "Text" for "Gemma3".
        norms: Names of the norms that are removed with a layer's attention, and of those removed with its MLP.
        names: Names of a layer's attention and of its MLP.
        pair: Whether MLPs return a pair, as attentions do.
        shared: Name in a mixture of its shared expert, if its width follows from that of the others.
        counts: Whether the decoder's constructor counts its layers, so that it can't be built without any.
        tail: Field for the width of the layers' own inputs, which the decoder embeds.
        layers: Name of the list of layers in the decoder.
        chains: Modules that are a layer's attention, and those that are its MLP, if those of their names also add the
            residual stream: the first computes, the others only change its result.
        sum_norms: Norms behind the sums, which stay with one of the two sub-layers and go with both.
        causal: Whether there is a causal language model, and a head of scores is only a projection; not in encoders.
        encoder: Name of the encoder inside the class with a head of scores, if there is such a class.
        narrowed: Input projections of a layer's attention, and its output projection, if the family's class would give
            fewer heads more columns, so that they are made narrower afterwards.
    """

    prefix: str
    module: str
    infix: str = ""
    norms: Norms = (("input_layernorm",), ("post_attention_layernorm",))
    names: Sequence[str] = ("self_attn", "mlp")
    pair: bool = False
    shared: str = ""
    counts: bool = False
    tail: str = ""
    layers: str = "layers"
    chains: Sequence[Sequence[str]] = ((), ())
    sum_norms: Sequence[str] = ()
    causal: bool = True
    encoder: str = ""
    narrowed: tuple[Sequence[str], str] = ((), "")

    def source(self) -> str:
        """Python source of this definition, without fields that have their default."""
        arguments = []
        for name, value in self._asdict().items():
            text = repr(value) if isinstance(value, bool) else json.dumps(value)
            if name not in self._field_defaults:
                arguments.append(text)
            elif json.dumps(value) != json.dumps(self._field_defaults[name]):
                arguments.append(f"{name}={text}")
        return f"Definition({', '.join(arguments)})"


@contextmanager
def _uniform(config: PreTrainedConfig, **values: int) -> Iterator[None]:
    """Temporarily turn this object into the configuration of a uniform model, with `values` if given.

    It must be the same object, because a copy would lose the model's choice of an attention implementation. Head sizes
    that belong to the type of a layer (Gemma 4) stay.
    """
    fields = config.__dict__
    hidden = {name: fields[name] for name in ("_heterogeneity_spec", *values) if name in fields}
    spec = fields.pop("_heterogeneity_spec", None)
    rows = getattr(spec, "per_layer_overrides", {})
    sizes = {layer: row["head_dim"] for layer, row in rows.items() if "head_dim" in row}
    if sizes:
        PreTrainedConfig.per_layer_config.fset(config, {layer: {"head_dim": size} for layer, size in sizes.items()})
    fields.update(values)
    try:
        yield
    finally:
        fields.pop("_heterogeneity_spec", None)
        fields.update(hidden)


def _of_whole(name: str) -> property:
    """A property of the whole configuration that a layer's copy follows."""

    def get(self: PreTrainedConfig) -> object:
        return getattr(self.__dict__.get("_whole", self), f"{name}_internal")

    return property(get, getattr(PreTrainedConfig, name).fset)


class Saved:
    """Mixin for a configuration that is saved with the modelling file beside it."""

    _definition: Definition
    _whole_definition: tuple[str, str] | None = None
    text_config: PreTrainedConfig

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: object, **kwargs: object) -> None:
        """Save config.json and, beside it, the modelling file that `auto_map` in it names."""
        whole_definition = self._whole_definition
        if whole_definition is None:
            self.auto_map = auto_map(self._definition.prefix)
        else:
            self.auto_map = auto_map(whole_definition[0], WHOLE)
        self.tokenizer_only = {"model_type": ""}  # AutoTokenizer, which runs no code, would warn about an unknown type
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        language_model = self if whole_definition is None else self.text_config
        definition = getattr(language_model, "_definition", None)
        if definition is not None:
            text = modeling_source(definition, whole_definition)
            Path(save_directory, "modeling_darwinlm.py").write_text(text, encoding="utf-8")


class VariesError(AmbiguousError, AttributeError):  # type: ignore[misc]
    """Layers differ in this size. In other tools, `getattr(config, name, default)` then gives the default."""


class PrunedConfig(Saved):
    """Mixin for a family's configuration that allows layers to differ. It comes before the family's class."""

    query_groups = None  # for layers whose key-value heads serve different numbers of query heads
    stored_kv_heads = None
    stock_kv_heads = None  # of every layer before pruning, in families whose layers differ anyway
    shared_expert_width = None  # if it isn't the family's multiple of the width of the other experts

    def __post_init__(self, per_layer_config: LayerOverrides | None = None, **kwargs: object) -> None:
        """Set the head size first, so that it doesn't depend on a layer's number of heads."""
        super().__post_init__(**kwargs)  # type: ignore[misc]
        self.__dict__.pop("_heterogeneity_spec", None)  # of the family's own
        if getattr(self, "head_dim", None) is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.per_layer_config = per_layer_config

    def __getattribute__(self, name: str) -> Any:
        """An attribute. Raises VariesError for a size in which layers differ."""
        try:
            return super().__getattribute__(name)
        except AmbiguousError as error:
            raise VariesError(*error.args) from None

    @property
    def per_layer_config(self) -> Sequence[PreTrainedConfig]:
        """Configuration of every layer. Set it from a mapping of layer index to overrides, including `skip`."""
        return PreTrainedConfig.per_layer_config.fget(self)  # type: ignore[no-any-return]

    @per_layer_config.setter
    def per_layer_config(self, layers: LayerOverrides | None) -> None:
        # A layer without attention has one head, so that caches reserve no more for it.
        one_head = {"num_attention_heads": 1, "num_key_value_heads": 1}
        if layers is not None:
            layers = {
                index: {**row, **(one_head if "attention" in row.get("skip", ()) else {})}
                for index, row in layers.items()
            }
        PreTrainedConfig.per_layer_config.fset(self, layers)

    _attn_implementation = _of_whole("_attn_implementation")
    _experts_implementation = _of_whole("_experts_implementation")

    def validate_architecture(self) -> None:
        """Check each layer. It runs when a configuration is created or saved, and when a model is built.

        Raises:
            ValueError: A layer has heads that don't divide into groups, or skips an unknown sub-layer.
        """
        for i, layer in enumerate(self.per_layer_config):
            unknown = set(getattr(layer, "skip", ())) - set(SUBLAYERS)
            if unknown:
                raise ValueError(f"layer {i} skips {sorted(unknown)}; only {list(SUBLAYERS)} can be skipped")
            heads, groups = layer.num_attention_heads, getattr(layer, "num_key_value_heads", None)
            groups = heads if groups is None else groups  # as some families' defaults say it
            if groups < 1 or heads < 1 or heads % groups:
                raise ValueError(f"layer {i}: {heads} query heads can't be shared evenly by {groups} key-value heads")

    def validate_layer_type(self) -> None:
        """Run the family's check. Some releases rename layer types in code outside of transformers; undo this."""
        types = getattr(self, "layer_types", None)
        super().validate_layer_type()  # type: ignore[misc]
        if types is not None and self.layer_types != types:  # type: ignore[has-type]
            self.layer_types = types

    def validate_rope(self) -> None:
        """Run the family's check of the rotary embedding, which all layers share."""
        with _uniform(self):
            super().validate_rope()  # type: ignore[misc]

    def layer(self, index: int) -> PreTrainedConfig:
        """Configuration of layer `index`; it follows this one's attention implementation."""
        config = copy.copy(self.per_layer_config[index])
        config.__dict__["_whole"] = self
        return config


class Absent(nn.Module):
    """Replaces a removed attention or MLP and adds nothing to the residual stream.

    Caches and masks read the number of tokens from the first layer of each kind (full, sliding), and a sliding layer's
    cache can't be cropped before its first use. In these layers, the replacement of an attention counts tokens by
    storing one zero head.
    """

    def __init__(self, counter: tuple[int, int] | None = None, pair: bool = False) -> None:
        super().__init__()
        self.pair = pair
        self.counter = counter  # (layer index, head size)

    def forward(self, hidden_states: torch.Tensor | float, **kwargs: object) -> float | tuple[float, None]:
        """Return 0.0, in the format of the sub-layer's result."""
        past: Cache | None = kwargs.get("cache", kwargs.get("past_key_values"))  # the newer and the older name
        if self.counter is not None and past is not None and isinstance(hidden_states, torch.Tensor):
            index, head_dim = self.counter
            zero = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], head_dim)
            past.update(zero, zero, index)
        return (0.0, None) if self.pair else 0.0


class SharedHeads(nn.Linear):
    """Projects onto the stored heads, and repeats each of them as often as it is used."""

    def __init__(self, like: nn.Linear, used: list[int], stored: int, head_dim: int) -> None:
        bias = like.bias is not None
        super().__init__(like.in_features, stored * head_dim, bias, like.weight.device, like.weight.dtype)
        self.used = used  # [heads] stored head of each head
        self.sizes = [head_dim] * stored
        self.out_features = len(used) * head_dim  # width of the result, which adapters need

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Project [..., in_features] to [..., heads * head_dim]."""
        stored: list[torch.Tensor] = list(super().forward(hidden_states).split_with_sizes(self.sizes, dim=-1))
        return torch.cat([stored[head] for head in self.used], dim=-1)


def share_kv_heads(attention: nn.Module, config: PreTrainedConfig) -> None:
    """Store only the `stored_kv_heads` key and value heads that `query_groups` refers to.

    In the attention each query head still has its own key and value head, so that all kernels and caches work.
    """
    used, stored, size = config.query_groups, config.stored_kv_heads, config.head_dim
    if used is None:
        return
    count = len(used)
    keys = [count + head for head in used]
    values = [count + stored + head for head in used]
    fused = [*range(count), *keys, *values]
    plans = {"k_proj": (used, stored), "v_proj": (used, stored), "qkv_proj": (fused, count + 2 * stored)}
    for name, (heads, rows) in plans.items():
        if isinstance(projection := getattr(attention, name, None), nn.Linear):
            setattr(attention, name, SharedHeads(projection, heads, rows, size))


def keep_shared_width(mlp: nn.Module, config: PreTrainedConfig, name: str) -> None:
    """Give a mixture's shared expert, of this name, its `shared_expert_width`, however wide the other experts are."""
    width, shared = config.shared_expert_width, getattr(mlp, name, None) if name else None
    if width is not None and isinstance(shared, nn.Module) and shared.intermediate_size != width:
        shared_config = copy.copy(config)
        shared_config.intermediate_size = width
        setattr(mlp, name, type(shared)(shared_config))


def keep_heads(layer: nn.Module, heads: int, dense: int, narrowed: tuple[Sequence[str], str]) -> None:
    """Keep so many of a layer's `dense` heads in the projections of `Definition.narrowed`."""
    inputs, output = narrowed
    for name in (*inputs, output):
        whole: Any = layer.get_submodule(name)
        rows, columns = whole.out_features, whole.in_features
        if name == output:
            columns = columns * heads // dense
        else:
            rows = rows * heads // dense
        like = {"device": whole.weight.device, "dtype": whole.weight.dtype}
        layer.set_submodule(name, nn.Linear(columns, rows, whole.bias is not None, **like))


class PrunedBlock:
    """Mixin for a decoder layer with parts that the family's class lacks; it comes before the family's class."""

    _definition: Definition

    def __init__(self, config: PreTrainedConfig, layer_idx: int) -> None:
        heads, dense = config.num_attention_heads, config.num_attention_heads
        if self._definition.narrowed[0]:
            dense = config.num_attention_heads = config.hidden_size // config.head_dim
        super().__init__(config, layer_idx)  # type: ignore[call-arg]
        if heads != dense:
            keep_heads(self, heads, dense, self._definition.narrowed)  # type: ignore[arg-type]
        attention_norms, mlp_norms = self._definition.norms
        (attention, *behind_attention), (mlp, *behind_mlp) = self._sublayers()
        unused = list(self._definition.sum_norms if set(config.skip) == set(SUBLAYERS) else ())
        counts = False
        if "attention" in config.skip:
            default = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
            types = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
            counts = types[layer_idx] not in types[:layer_idx] or types[layer_idx] == "sliding_attention"
            self._put(attention, Absent((layer_idx, config.head_dim) if counts else None, pair=True))
            unused += [*attention_norms, *behind_attention, "resid_attn_dropout"]
        elif config.query_groups is not None:
            share_kv_heads(getattr(self, attention), config)
        if "mlp" in config.skip:
            self._put(mlp, Absent(pair=self._definition.pair))
            unused += [*mlp_norms, *behind_mlp, "resid_mlp_dropout"]
        else:
            keep_shared_width(getattr(self, mlp), config, self._definition.shared)
        for name in unused:
            if "." in name or hasattr(self, name):
                self._put(name, nn.Identity())
        self.empty = set(config.skip) == set(SUBLAYERS) and not counts and not self.state_dict()  # type: ignore[attr-defined]

    @classmethod
    def _sublayers(cls) -> list[Sequence[str]]:
        """Names of the modules that are the attention, and of those that are the MLP."""
        pairs = zip(cls._definition.names, cls._definition.chains, strict=True)
        return [chain or (name,) for name, chain in pairs]

    def _put(self, name: str, module: nn.Module) -> None:
        owner, _, leaf = name.rpartition(".")
        setattr(self.get_submodule(owner) if owner else self, leaf, module)  # type: ignore[attr-defined]

    def forward(
        self, hidden_states: torch.Tensor, *args: object, **kwargs: object
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Run the family's layer; a layer without sub-layers returns its input."""
        return hidden_states if self.empty else super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]


class FromFamily:
    """Gets from the family's class what transformers reads from a class's source file."""

    _parent: type  # transformers resolves annotations of classes, so only names that exist at run time may stand here

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return cls._parent._can_set_experts_implementation()  # type: ignore[attr-defined, no-any-return]


class PrunedModel(FromFamily):
    """Mixin for a decoder whose layers have their own configurations. It comes before the family's class."""

    _definition: Definition
    _blocks: tuple[type, type]

    def __init__(self, config: PreTrainedConfig) -> None:
        config.validate_architecture()
        plain, pruned = self._blocks
        with _uniform(config, **({} if self._definition.counts else NO_LAYERS)):
            super().__init__(config)  # type: ignore[call-arg]
        blocks = []
        for index in range(config.num_hidden_layers):
            layer = config.layer(index)
            unlike = getattr(layer, "skip", ()) or (layer.query_groups, layer.shared_expert_width) != (None, None)
            if self._definition.narrowed[0]:
                unlike = unlike or layer.num_attention_heads * layer.head_dim != layer.hidden_size
            blocks.append((pruned if unlike else plain)(layer, index))
        owner, _, name = self._definition.layers.rpartition(".")
        setattr(self.get_submodule(owner) if owner else self, name, nn.ModuleList(blocks))  # type: ignore[attr-defined]
        self._no_split_modules = {type(block).__name__ for block in blocks}  # trainers look for each of them
        if isinstance(rotary := getattr(self, "rotary_emb", None), nn.Module):  # reads sizes that all layers share
            with _uniform(config):
                rotary.config = copy.copy(config)
        self.post_init()  # type: ignore[attr-defined]


class PrunedForCausalLM(FromFamily):
    """Mixin for a language model around a `PrunedModel`. It comes before the family's class."""

    _definition: Definition
    _decoder: type

    def __init__(self, config: PreTrainedConfig) -> None:
        tail = {self._definition.tail: 0} if self._definition.tail else {}
        with _uniform(config, **NO_LAYERS, **tail):
            super().__init__(config)  # type: ignore[call-arg]
        self.model = None  # release the empty decoder before the real one is built
        self.model = self._decoder(config)
        self._no_split_modules = set[str]()  # those of the decoder
        self.post_init()  # type: ignore[attr-defined]


class PrunedForSequenceClassification(FromFamily):
    """Mixin for a model with a head of scores on a `PrunedModel`. It comes before the family's class."""

    _decoder: type

    def __init__(self, config: PreTrainedConfig) -> None:
        PreTrainedModel.__init__(self, config)  # the family's class would look its decoder up among those registered
        self.num_labels = config.num_labels
        self.model = self._decoder(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self._no_split_modules = set[str]()
        self.post_init()  # type: ignore[attr-defined]


class PrunedEncoderForSequenceClassification(FromFamily):
    """Mixin for an encoder with the family's head of scores. It comes before the family's class."""

    _definition: Definition
    _decoder: type

    def __init__(self, config: PreTrainedConfig) -> None:
        with _uniform(config, **NO_LAYERS):
            super().__init__(config)  # type: ignore[call-arg]
        encoder = self._decoder(config)
        if getattr(self, self._definition.encoder).pooler is None:
            encoder.pooler = None
        setattr(self, self._definition.encoder, encoder)
        self._no_split_modules = set[str]()
        self.post_init()  # type: ignore[attr-defined]


def define_classes(definition: Definition) -> Classes:
    """Define a family's classes in this module; later calls return the same ones.

    Returns:
        The configuration, the model without a head, the causal language model, and the model with a head of scores;
        None for one of the last two if transformers has none of the family, or if an encoder's isn't supported.
    """
    prefix, module, infix = definition[:3]
    config, model, causal, scores = (f"Darwin{prefix}{part}" for part in AUTOS.values())
    if model not in globals():
        family = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        parent = getattr(family, f"{prefix}{infix}Config")
        names = (f"{prefix}DecoderLayer", f"{prefix}{infix}DecoderLayer", f"{prefix}EncoderLayer", f"{prefix}Layer")
        plain = next(getattr(family, name) for name in names if hasattr(family, name))
        members = {"model_type": f"darwinlm_{parent.model_type}", "_definition": definition}
        # Repeat the decorator, otherwise the family's checks would replace the ones above.
        config_class = strict(_derive(config, PrunedConfig, parent, **members))
        pruned = _derive(f"Darwin{plain.__name__}", PrunedBlock, plain, _definition=definition)
        shared = {"config_class": config_class, "_definition": definition}
        parent = getattr(family, f"{prefix}{infix}Model")
        decoder = _derive(model, PrunedModel, parent, _parent=parent, _blocks=(plain, pruned), **shared)
        heads = {"_decoder": decoder, **shared}
        if definition.encoder:
            parent = getattr(family, f"{prefix}ForSequenceClassification")
            _derive(scores, PrunedEncoderForSequenceClassification, parent, _parent=parent, **heads)
        parent = getattr(family, f"{prefix}ForCausalLM", None) if definition.causal else None
        if parent is not None:
            _show_server(_derive(causal, PrunedForCausalLM, parent, _parent=parent, **heads))
            parent = getattr(family, f"{prefix}{infix}ForSequenceClassification", None)
            if parent is not None:
                _derive(scores, PrunedForSequenceClassification, parent, _parent=parent, **heads)
    return globals()[config], globals()[model], globals().get(causal), globals().get(scores)


def define_whole(prefix: str, module: str, text: Classes) -> tuple[type[PreTrainedConfig], type[PreTrainedModel]]:
    """Define classes with a vision tower or other parts around a language model, which transformers' classes contain.

    Args:
        prefix: Prefix of the class names, "Gemma3".
        module: Their package in `transformers.models`, "gemma3".
        text: The language model's classes, from `define_classes`.

    Returns:
        The configuration and the model.
    """
    text_config, text_model, *_ = text
    AutoConfig.register(text_config.model_type, text_config, exist_ok=True)
    AutoModel.register(text_config, text_model, exist_ok=True)
    config_name, model_name = f"Darwin{prefix}WholeConfig", f"Darwin{prefix}ForConditionalGeneration"
    if config_name not in globals():
        configuration = importlib.import_module("transformers.configuration_utils")
        family = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
        plain = getattr(family, f"{prefix}ForConditionalGeneration")
        parent = getattr(family, f"{prefix}Config")
        by_type = configuration.SubConfigSpec(config_class=AutoConfig, model_type=text_config.model_type)
        parts = {**parent.sub_configs_defaults, "text_config": by_type}
        members = {"model_type": f"darwinlm_{parent.model_type}", "_whole_definition": (prefix, module)}
        config = _derive(config_name, Saved, parent, sub_configs_defaults=parts, **members)
        _show_server(_derive(model_name, FromFamily, plain, config_class=config))
    return globals()[config_name], globals()[model_name]


def _derive(name: str, mixin: type, parent: type, **members: object) -> type:
    """Create a class and store it in this module, where saving, loading and pickling look for it."""
    about = {
        "__module__": __name__,
        "__qualname__": name,
        "__doc__": f"{parent.__name__} of unequal layers.",
        "_parent": parent,
    }
    derived = type(name, (mixin, parent), {**about, **members})
    globals()[name] = derived
    return derived


def _show_server(model: type) -> None:
    """Let `transformers serve`, if this is its process, find a model class; it looks in `transformers` alone."""
    server = sys.modules.get("transformers.cli.serving.model_manager")
    if server is not None:
        setattr(server.transformers, model.__name__, model)


def auto_map(prefix: str, parts: Mapping[str, str] = AUTOS) -> dict[str, str]:
    """The `auto_map` of config.json: the class of the modelling file for each Auto class, of those that are defined."""
    names = {auto: f"Darwin{prefix}{part}" for auto, part in parts.items()}
    return {auto: f"modeling_darwinlm.{name}" for auto, name in names.items() if name in globals()}


def modeling_source(definition: Definition, whole_definition: tuple[str, str] | None = None) -> str:
    """Source of a checkpoint's copy of this file, with the line that defines the family's classes.

    `whole_definition` holds the first two arguments of `define_whole`, for a model with further parts.
    """
    line = f"define_classes({definition.source()})"
    if whole_definition is not None:
        prefix, module = whole_definition
        line = f"define_whole({json.dumps(prefix)}, {json.dumps(module)}, {line})"
    text = Path(__file__).read_text(encoding="utf-8")
    return text if text.endswith(f"\n{line}\n") else f"{text}\n\n{line}\n"
