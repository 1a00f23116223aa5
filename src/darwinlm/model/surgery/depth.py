"""Whole blocks left out of a model with equal layers, so that the family's own class runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn
from transformers import AutoConfig

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import is_custom
from darwinlm.model.families.shapes import head_dim
from darwinlm.model.surgery.layer_table import SKIP, present_table
from darwinlm.model.surgery.smaller_config import equal_config
from darwinlm.model.surgery.smaller_model import empty_model, fill
from darwinlm.runtime.json_values import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers", "moe_topk")
"""Configuration fields with a value for every layer."""
KEPT = "kept_layers"
"""Configuration field of a model with fewer layers than its original: their numbers there. Engines ignore it."""


def in_family_class(model: PreTrainedModel, checkpoint: Checkpoint) -> PreTrainedModel:
    """The model without its empty blocks in the family's own class, if that runs the others; else the model itself.

    `checkpoint` has the configuration of the model. Weights are shared, not copied.
    """
    family, table = checkpoint.family, present_table(checkpoint)
    kept = [block for block, row in table.items() if len(row.get(SKIP, ())) < 2]
    if not is_custom(checkpoint.config) or len(kept) == len(table):
        return model
    columns = [head_dim(checkpoint.config, block) for block in kept]
    rows = {number: table[block] for number, block in enumerate(kept)}
    config = equal_config(family, _shortened(checkpoint.config.to_dict(), kept), rows, columns)
    if config is None:
        return model
    small = empty_model(config, checkpoint)
    originals = [model.get_submodule(f"{family.layers}.{block}") for block in kept]
    renumbered = small.get_submodule(family.layers)
    if not all(_alike(original, block) for original, block in zip(originals, renumbered, strict=True)):
        return model
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(f"{family.layers}.")}
    for number, original in enumerate(originals):
        tensors = original.state_dict()
        state |= {f"{family.layers}.{number}.{name}": tensor for name, tensor in tensors.items()}
    missing, unexpected = fill(small, state)
    assert not missing, f"the model lacks {missing}"
    assert not unexpected, f"the family's class has no {unexpected}"
    return small.eval().requires_grad_(requires_grad=False)


def can_lose_blocks(checkpoint: Checkpoint, kept: Sequence[int] | None = None) -> bool:
    """Whether a model of the family's own class is the same without some of its blocks; None keeps all but the first.

    It isn't if what a block does follows from its number, as in models whose first MLPs are dense and whose other ones
    are mixtures of experts, or if blocks read more than the residual stream.
    """
    family, count = checkpoint.family, checkpoint.n_blocks
    if is_custom(checkpoint.config) or family.tail is not None or family.linked(checkpoint.config) or count < 2:
        return False
    kept = range(1, count) if kept is None else kept
    short = empty_model(without_blocks(checkpoint.config, kept), checkpoint).get_submodule(family.layers)
    blocks = checkpoint.outline.get_submodule(family.layers)
    return all(_alike(blocks[number], block) for number, block in zip(kept, short, strict=True))


def without_blocks(config: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """A configuration of the family's own class with only some of its blocks."""
    return AutoConfig.for_model(**_shortened(config.to_dict(), kept))


def numbers_in(checkpoint: Checkpoint, original: Checkpoint) -> list[int]:
    """For every block of a model its number in the original, which may have lost blocks itself."""
    names = list(getattr(original.config, KEPT, None) or range(original.n_blocks))
    kept = getattr(checkpoint.config, KEPT, None) or names[: checkpoint.n_blocks]
    return [names.index(layer) for layer in kept]


def _shortened(tree: JsonObject, kept: Sequence[int]) -> JsonObject:
    """A configuration as plain values, with some of its layers."""
    names = tree.get(KEPT) or range(tree["num_hidden_layers"])
    short = {**tree, "num_hidden_layers": len(kept), KEPT: [names[block] for block in kept]}
    for name in LISTS:
        if isinstance(tree.get(name), list | tuple):  # a number is that of all layers
            short[name] = [tree[name][block] for block in kept]
    return short


def _alike(original: nn.Module, renumbered: nn.Module) -> bool:
    """Whether two blocks compute the same with the same weights, whatever their numbers."""
    modules, counterparts = list(original.named_modules()), list(renumbered.named_modules())
    if len(modules) != len(counterparts):
        return False
    return all(
        name == counterpart_name and _settings(counterpart).items() <= _settings(module).items()
        for (name, module), (counterpart_name, counterpart) in zip(modules, counterparts, strict=True)
    )


def _settings(module: nn.Module) -> dict[str, object]:
    """What a module computes with, apart from its weights: its class, its plain attributes, and shapes."""
    kinds = bool | int | float | str | None
    plain = {
        name: value for name, value in vars(module).items() if isinstance(value, kinds) and not name.startswith("_")
    }
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters(recurse=False)}
    number = {"layer_idx": None, "layer_id": None}
    return {"class": getattr(type(module), "_parent", type(module)), **plain, **shapes, **number}
