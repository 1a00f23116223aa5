"""Build the physically smaller model of an allocation (DarwinLM §3.2); equal layers use the family's class."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import Family, class_prefix, is_custom
from darwinlm.model.families.parts import KINDS, Experts, ModuleKind
from darwinlm.model.families.pruned import pruned_classes, pruned_config
from darwinlm.model.families.shapes import head_dim, module_shapes
from darwinlm.model.surgery.shrink import (
    KV_HEADS,
    QUERY_GROUPS,
    SHARED_WIDTH,
    STORED_KV_HEADS,
    layer_overrides,
    shrink_tensors,
    split_block,
)
from darwinlm.model.units.levels import Level, ModuleLevels, kept_groups
from darwinlm.model.units.modules import ModuleReader

SKIP = "skip"
OF_OUR_CLASS = (
    "per_layer_config", "auto_map", "architectures", "stock_kv_heads", QUERY_GROUPS, STORED_KV_HEADS, SHARED_WIDTH,
)  # fmt: skip
"""Configuration fields that the family's own class lacks."""
Chosen = dict[tuple[int, ModuleKind], Level]


def stitch(database: ModuleReader, allocation: tuple[int, ...], keep: Callable[[Tensor], Tensor] = torch.clone) -> Any:
    """The smaller model of an allocation, in the checkpoint's types; `keep` puts every tensor in its place."""
    smaller, weights = stitched_blocks(database, allocation)
    model, prefix = smaller.skeleton(), database.checkpoint.block_prefix
    tensors = {name: keep(database.checkpoint.read(name)[""]) for name in database.checkpoint.names_outside_blocks()}
    for block in range(smaller.n_blocks):
        tensors |= {prefix(block) + name: keep(tensor) for name, tensor in weights(block).items()}
    left, _ = fill(model, tensors)
    assert not left, f"stitching left {left} without weights"
    return model.eval().requires_grad_(requires_grad=False)


def stitched_blocks(
    database: ModuleReader, allocation: tuple[int, ...]
) -> tuple[Checkpoint, Callable[[int], dict[str, Tensor]]]:
    """The smaller model of an allocation, to be read block by block.

    Returns a checkpoint with its configuration and everything outside its blocks, and the weights of a block by name in
    it.
    """
    checkpoint = database.checkpoint
    chosen = chosen_levels(database.modules, allocation)
    table = layer_table(checkpoint.n_blocks, chosen, partial(sizes_in, database))
    smaller = _described(smaller_config(checkpoint, table), checkpoint)
    return smaller, lambda block: dict(_block_tensors(database, chosen, block))


def chosen_levels(modules: tuple[ModuleLevels, ...], allocation: tuple[int, ...]) -> Chosen:
    """The level of each module by block and kind."""
    pairs = zip(modules, allocation, strict=True)
    return {(module.block, module.kind): module.levels[index] for module, index in pairs}


def layer_table(
    n_blocks: int, chosen: Chosen, sizes: Callable[[int, ModuleKind, Level], dict[str, Any]]
) -> dict[int, dict[str, Any]]:
    """`per_layer_config` of a smaller model: `sizes` of the modules of every layer, and sub-layers that it skips."""
    table: dict[int, dict[str, Any]] = {}
    for block in range(n_blocks):
        there = {kind: chosen[block, kind] for kind in KINDS if (block, kind) in chosen and chosen[block, kind].width}
        row: dict[str, Any] = {}
        for kind, level in there.items():
            row |= sizes(block, kind, level)
        standing = {"attention" if kind == "mixer" else kind for kind in there}  # a mixer replaces the attention
        gone = [kind for kind in ("attention", "mlp") if kind not in standing]
        table[block] = row | ({SKIP: gone} if gone else {})
    return table


def sizes_in(database: ModuleReader, block: int, kind: ModuleKind, level: Level) -> dict[str, Any]:
    """Configuration fields of a layer for a module of a database at a level."""
    shape, query_groups = database.shapes[block, kind], None
    if kind == "attention":
        _, query_groups = kept_groups(shape, level, database.columns(block, kind, level))
    return layer_overrides(database.checkpoint.family, shape, level, query_groups)


def smaller_config(checkpoint: Checkpoint, table: dict[int, dict[str, Any]]) -> Any:
    """Configuration of the smaller model.

    Equal layers use the family's configuration class, unequal ones our class with `per_layer_config`. `table` is from
    `layer_table`.
    """
    family = checkpoint.family
    tree = checkpoint.config.to_dict()
    if family.switch is not None:
        off = {family.switch: type(getattr(checkpoint.config.per_layer_config[0], family.switch))()}
        table = {block: row | (off if "mlp" in row.get(SKIP, ()) else {}) for block, row in table.items()}
    columns = [head_dim(checkpoint.config, block) for block in table]
    if len(set(columns)) > 1 and not is_custom(checkpoint.config) and layer_sizes(checkpoint) == table:
        return copy.deepcopy(checkpoint.config)
    config = equal_config(family, tree, table, columns)
    if config is not None:
        return config
    changes = {}
    experts = family.mlp.experts
    if experts is not None and len({row[experts.count] for row in table.values() if experts.count in row}) > 1:
        changes["output_router_logits"] = False  # transformers' balancing loss needs equal numbers of experts
    config_class, _, causal = pruned_classes(*family.class_names)
    config = pruned_config(config_class, checkpoint.config, table, changes)
    config.architectures = [causal.__name__]
    return config


def equal_config(
    family: Family, tree: dict[str, Any], table: dict[int, dict[str, Any]], columns: Sequence[int]
) -> Any | None:
    """Configuration of the family's own class; None if the layers of `table` differ, or the class refuses their sizes.

    `tree` is the configuration as plain values, `columns` the head size of each layer.
    """
    per_layer: dict[int, dict[str, Any]] = {}
    if len(set(columns)) > 1:  # then the family's class takes KV heads by layer too
        per_layer = {block: {name: row[name] for name in (KV_HEADS,) if name in row} for block, row in table.items()}
    rest = {block: {k: v for k, v in row.items() if k not in per_layer.get(block, ())} for block, row in table.items()}
    sizes = _common_sizes(rest, family.mlp.experts)
    if sizes is None:
        return None
    tree = {name: value for name, value in tree.items() if name not in OF_OUR_CLASS}
    tree |= sizes | {"model_type": family.model_type}
    if per_layer:
        tree["per_layer_config"] = {block: row | {"head_dim": columns[block]} for block, row in per_layer.items()}
    else:
        tree["head_dim"] = columns[0]
    # Some families' classes refuse head counts that don't divide the hidden size; our class accepts them.
    try:
        config = AutoConfig.for_model(**tree)
    except StrictDataclassError:
        return None
    config.architectures = [f"{class_prefix(family.model_type)}ForCausalLM"]
    return config


def layer_sizes(checkpoint: Checkpoint) -> dict[int, dict[str, Any]]:
    """The table of a model's layers as in `layer_table`, from the shapes of its weights."""
    shapes = {(shape.block, shape.kind): shape for shape in module_shapes(checkpoint)}
    chosen: Chosen = {}
    for place, shape in shapes.items():
        heads = shape.width // shape.head_dim if shape.kind == "attention" else 0
        chosen[place] = Level(shape.groups, shape.heads, shape.width, 0, heads, shape.experts)
    return layer_table(
        checkpoint.n_blocks,
        chosen,
        lambda block, kind, level: layer_overrides(
            checkpoint.family, shapes[block, kind], level, shapes[block, kind].query_groups
        ),
    )


def _common_sizes(table: dict[int, dict[str, Any]], experts: Experts | None) -> dict[str, Any] | None:
    """Sizes common to all layers; None if layers differ. Layers without a size don't count for it.

    The width of a shared expert becomes its multiple of the other experts' width.
    """
    sizes: dict[str, Any] = {}
    for row in table.values():
        unlike = any(sizes.setdefault(name, value) != value for name, value in row.items())
        if unlike or row.keys() & {SKIP, QUERY_GROUPS}:
            return None
    shared = sizes.pop(SHARED_WIDTH, None)
    if shared is not None and experts is not None and experts.shared_count is not None:
        multiple, rest = divmod(shared, sizes[experts.width])
        if isinstance(experts.shared_count, int):
            return sizes if (multiple, rest) == (experts.shared_count, 0) else None
        return None if rest else {**sizes, experts.shared_count: multiple}
    return sizes


def empty_model(config: Any, checkpoint: Checkpoint) -> Any:
    """The smaller model on the meta device, except for buffers that aren't saved."""
    return _described(config, checkpoint).skeleton()


def _described(config: Any, checkpoint: Checkpoint) -> Checkpoint:
    if is_custom(config):
        pruned_classes(*checkpoint.family.class_names)
    return replace(checkpoint, config=config)


def fill(model: Any, tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Give a model on the meta device its weights; returns the names that lack some, and names without a place."""
    unexpected: list[str] = model.load_state_dict(tensors, assign=True, strict=False).unexpected_keys
    model.tie_weights()
    return [name for name, parameter in model.named_parameters() if parameter.is_meta], unexpected


def _block_tensors(database: ModuleReader, chosen: Chosen, block: int) -> Iterator[tuple[str, Tensor]]:
    family, inside = database.checkpoint.family, database.tensors(block)
    if family.tail is not None and family.tail.scale in inside:
        yield family.tail.scale, inside[family.tail.scale]
    for kind in family.kinds:
        part = family.module(kind)
        level = chosen.get((block, kind))
        if level is None or level.width == 0:
            continue
        tensors, norms = split_block(inside, part)
        kept = database.kept(block, kind, level)
        for name, tensor in shrink_tensors(family, database.shapes[block, kind], tensors, kept).items():
            yield f"{part.prefix}{name}", tensor
        yield from norms.items()


def block_parameters(model: nn.Module, layers: str) -> int:
    """Number of parameters inside a model's blocks."""
    return sum(parameter.numel() for parameter in model.get_submodule(layers).parameters())


def as_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with parameters in another type; buffers are unchanged."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
