"""The parts of a family's description: names of sub-layers and of their projections, and how they are cut."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ModuleKind = Literal["attention", "mixer", "mlp", "tail"]
RowUnit = Literal["query", "gated_query", "key_value", "channel"]
KINDS: tuple[ModuleKind, ...] = ("attention", "mixer", "mlp", "tail")
"""Kinds in the order in which a block runs them. A block has an attention or a mixer, if any, an MLP, and in some
families a tail."""


class Closed(BaseModel):
    """A closed, frozen description."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _by_name(projections: Iterable[tuple[str, RowUnit]]) -> dict[str, list[RowUnit]]:
    segments: dict[str, list[RowUnit]] = {}
    for name, unit in projections:
        segments.setdefault(name, []).append(unit)
    return segments


def _is_in(name: str, modules: Iterable[str]) -> bool:
    """Whether a tensor belongs to one of some modules, by names inside the block."""
    return any(name.startswith(f"{module}.") for module in modules)


class SubLayer(Closed):
    """Common part of attention and MLP: x + a * post_norm(output(...(norm(x)))), with a = 1 in most families."""

    name: str
    """Name of the sub-layer in the block."""
    output: str
    """Projection whose columns belong to query heads (attention) or are channels (MLP)."""
    norms: tuple[str, ...]
    """Norms of the block that are removed with the sub-layer. The first is applied to its input, unless it is
    `post_norm`."""
    post_norm: str | None = None
    """The last of `norms`, if it is applied to the output projection's result before this is added to the residual
    stream (Gemma 2 and 3; the only norm in OLMo 2). It maps zero to zero. Least-squares fits of the projection have
    their target before this norm."""
    sum_norm: str | None = None
    """The last of `norms`, if it is applied to the sum of the residual stream and the sub-layer's output, and gives the
    stream behind the sub-layer (BERT). It stays when the sub-layer is removed, unless the block has none left.
    Least-squares fits have their target before this norm."""
    chain: tuple[str, ...] = ()
    """Modules of the block that are the sub-layer, if the module of its name also adds the residual stream (BERT): the
    first is called with the stream, and each of the others with the result of the one before. Empty if the module of
    its name is the sub-layer."""

    pair: bool = False
    """Whether it returns a pair, of which its block ignores the second (gpt-oss); attentions do."""

    @cached_property
    def segments(self) -> dict[str, list[RowUnit]]:
        """Kinds of rows of each input projection that is cut: one entry, or several for a fused one."""
        return {}

    @property
    def prefix(self) -> str:
        """Prefix of the names of its tensors inside the block, which names inside the sub-layer lack."""
        return f"{self.name}." if self.name else ""

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules of the block that belong to it, without norms."""
        return self.chain or (self.name,)

    def owns(self, name: str) -> bool:
        """Whether a tensor, by name inside the block, belongs to it; norms don't."""
        return _is_in(name, self.modules)

    def has_norm(self, name: str) -> bool:
        """Whether a tensor, by name inside the block, belongs to one of its norms."""
        return _is_in(name, self.norms)

    def stays(self, name: str) -> bool:
        """Whether a tensor of its norms, by name inside the block, stays when the sub-layer is removed."""
        return self.sum_norm is not None and _is_in(name, (self.sum_norm,))


class Attention(SubLayer):
    """Names of an attention inside its block."""

    pair: bool = True

    cut: Literal["heads", "whole", "never"] = "heads"
    """Units of removal: single heads, the whole attention, or none. `whole` is for attentions that depend on the number
    of heads (norms over all heads, an output projection of fixed size). `never` is for mixtures of experts, where only
    MLPs are cut, as in DarwinLM."""
    heads_divide_width: bool = False
    """Whether its class divides the hidden size by the number of heads to get the size of one. Its projections are made
    narrower after it is built (BERT)."""
    query: tuple[str, ...]
    """Projections whose rows belong to query heads; none if keys and values are compressed (multi-head latent
    attention)."""
    gated: bool = False
    """Whether the rows of each query head are followed by those of a gate on its output (Qwen3.5)."""
    sinks: bool = False
    """Whether it learned a sink for each head, so that it needs no token as one (gpt-oss)."""
    neighbours: bool = False
    """Whether its rotary embedding pairs neighbouring columns of a head instead of halves."""
    reused: str | None = None
    """Configuration field for the number of last blocks whose attentions reuse the keys and values of the last earlier
    block of the same layer type (Gemma 4). All attentions that take part in this are kept."""
    key_value: tuple[str, ...]
    """Projections whose rows belong to KV heads; a block may lack those of values that equal its keys. A name that is
    also in `query`, or that is listed twice, is a fused tensor: its rows are those of each occurrence in order, queries
    first."""

    def sources(self, config: PreTrainedConfig) -> dict[int, int]:
        """The blocks that reuse keys and values, each with the block whose keys and values these are."""
        if self.reused is None:
            return {}
        count, types = int(config.num_hidden_layers), config.layer_types
        first = max(count - int(getattr(config, self.reused) or 0), 0)
        last_of_type = {types[block]: block for block in range(first)}
        return {block: last_of_type[types[block]] for block in range(first, count) if types[block] in last_of_type}

    @property
    def narrowed(self) -> tuple[tuple[str, ...], str]:
        """Input projections and the output projection, by name inside the block, that are narrower with fewer heads.

        Empty if the class builds them so itself.
        """
        if not self.heads_divide_width:
            return (), ""
        inputs = dict.fromkeys((*self.query, *self.key_value))
        return tuple(self.prefix + name for name in inputs), self.prefix + self.output

    @cached_property
    def segments(self) -> dict[str, list[RowUnit]]:
        """Kinds of rows of each input projection of the attention: one entry, or several for a fused one."""
        query: RowUnit = "gated_query" if self.gated else "query"
        return _by_name([*((name, query) for name in self.query), *((name, "key_value") for name in self.key_value)])


class Mixer(SubLayer):
    """Token mixer in place of the attention of some blocks, such as linear attention. It is never cut or removed."""

    title: str
    """Name in messages: `linear attention`."""


class Tail(SubLayer):
    """What a block does after its MLP. It is never cut or removed, and runs in blocks without other parts too."""

    title: str
    """Name in messages: `per-layer input`."""
    output: str = ""
    """Empty, since the projection has no module around it."""
    argument: str
    """Argument of the block that is a slice of the per-layer embeddings."""
    embedding: str
    """Embedding of tokens for all layers."""
    vocabulary: str
    """Configuration field for its number of tokens."""
    width: str
    """Attribute of a block, and configuration field, for the slice's size; a block skips its tail if it is 0."""
    scale: str
    """Buffer of the block: a factor on its result, with or without the other parts of the tail."""


class Experts(Closed):
    """Names inside the MLP of a mixture of experts. All experts of a block are cut to the same width.

    The defaults are names that most mixtures of transformers have in common.
    """

    name: str = "experts"
    """Module of all experts; the first dimension of each of its tensors counts experts."""
    router: str = "gate"
    """Router: each of its tensors has a row for every expert, and its scores give the weights. Other parts of the
    mixture, such as a shared expert, are never changed."""
    common: tuple[str, ...] = ()
    """Tensors of the router that have no row for every expert."""
    scores: Literal["softmax", "sigmoid"] = "softmax"
    """Function of the router's logits that gives the scores."""
    correction: str | None = None
    """Tensor whose last dimension counts experts, and that is added to their scores for the choice of experts, but not
    for their weights."""
    normalised: bool | str = True
    """Whether the weights of the chosen experts sum to one, or the configuration field that determines this. Otherwise
    they are shares of the softmax over all experts."""
    scale: str | None = None
    """Configuration field for a factor on all weights."""
    groups: str | None = None
    """Configuration field for the number of groups of experts among which the router chooses first. With several
    groups, experts can't be dropped."""
    shared: str | None = None
    """Shared expert, an MLP that every token uses."""
    shared_count: str | int | None = None
    """The shared expert's width as a multiple of that of the other experts, or the configuration field for it; None if
    its width doesn't depend on theirs."""
    count: str
    """Configuration field for the number of experts."""
    chosen: str = "num_experts_per_tok"
    """Configuration field for the number of experts chosen for a token, which is the minimum to keep. It may be a list
    of equal numbers, one for each layer."""
    inputs: tuple[str, ...] = ("gate_up_proj", "gate_up_proj")
    """Tensors [experts, rows, columns] whose rows are channels. A name that is listed twice is a fused tensor. The bias
    of a tensor, if it has one, is named after it: `down_proj_bias`."""
    transposed: bool = False
    """Whether tensors are [experts, columns, rows] instead (gpt-oss)."""
    interleaved: bool = False
    """Whether the rows of a fused tensor alternate between its parts (gpt-oss)."""
    output: str = "down_proj"
    """Tensor [experts, rows, columns] whose columns are channels."""
    width: str
    """Configuration field for the number of channels of an expert."""

    @cached_property
    def segments(self) -> dict[str, list[RowUnit]]:
        """Kinds of rows of each input tensor of the experts: one entry, or several for a fused one."""
        return _by_name((name, "channel") for name in self.inputs)

    def rows_of(self, leaf: str) -> list[RowUnit]:
        """Kinds of rows of a tensor of the experts or of its bias; empty if they are never cut."""
        return self.segments.get(leaf.removesuffix("_bias"), [])

    def counted(self, name: str) -> bool:
        """Whether a dimension of a tensor inside the MLP counts experts."""
        inside = name == self.correction or name.startswith((f"{self.name}.", f"{self.router}."))
        return inside and name not in self.common

    def axis(self, name: str) -> int:
        """The dimension that counts experts."""
        return -1 if name == self.correction else 0

    def droppable(self, config: PreTrainedConfig) -> bool:
        """Whether the router can do without some of the experts: its weights are then known from the other scores."""
        grouped = self.groups is not None and (getattr(config, self.groups) or 1) > 1
        return not grouped and (self.scores == "softmax" or self.sums_to_one(config))

    def weight_scale(self, config: PreTrainedConfig) -> float:
        """Factor on all weights."""
        return 1.0 if self.scale is None else float(getattr(config, self.scale))

    def chosen_of(self, config: PreTrainedConfig) -> int:
        """Number of experts chosen for a token."""
        chosen = getattr(config, self.chosen)
        return max(chosen) if isinstance(chosen, list) else int(chosen)

    def multiple(self, config: PreTrainedConfig) -> int | None:
        """The shared expert's width as a multiple of that of the other experts; None if it doesn't depend on theirs."""
        return int(getattr(config, self.shared_count)) if isinstance(self.shared_count, str) else self.shared_count

    def sums_to_one(self, config: PreTrainedConfig) -> bool:
        """Whether the weights of the chosen experts sum to one."""
        return bool(getattr(config, self.normalised)) if isinstance(self.normalised, str) else self.normalised


class Mlp(SubLayer):
    """Names of an MLP inside its block.

    If `name` is empty, it is a mixture whose parts are modules of the block: its experts run beside an MLP, which is
    the shared expert (Gemma 4, Granite 4); `inputs` and `output` belong to the latter.
    """

    inputs: tuple[str, ...]
    """Projections whose rows are channels: gate and up, or one without a gate. A name that is listed twice is a fused
    tensor: all rows of the first, then all rows of the second."""
    width: str = "intermediate_size"
    """Configuration field for the number of channels."""
    with_width: dict[str, bool] = {}
    """Further fields that are set with the width, so that the family's class doesn't change it (LFM2)."""
    kept: str = ""
    """Name in messages of a part of mixtures that is never cut: `MLP beside experts`. It is removed with the experts
    alone."""
    experts: Experts | None = None
    """Names of the experts if the MLP is a mixture."""

    @cached_property
    def segments(self) -> dict[str, list[RowUnit]]:
        """Kinds of rows of each input projection of the MLP: one entry, or several for a fused one."""
        return _by_name((name, "channel") for name in self.inputs)

    @property
    def dependent(self) -> str:
        """Name of a shared expert whose width follows from that of the others; empty without one."""
        experts = self.experts
        return experts.shared or "" if experts is not None and experts.shared_count is not None else ""

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules of the block that belong to it, without norms."""
        if self.name or self.experts is None:
            return super().modules
        paths = (self.experts.router, self.experts.name, self.experts.shared or "")
        return tuple(dict.fromkeys(path.partition(".")[0] for path in paths if path))


Part = Attention | Mixer | Mlp | Tail
