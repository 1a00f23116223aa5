"""A model in mlx-lm whose layers differ in size: its family's classes there, with each layer at its own sizes.

`config.json` names this file in `model_file`, and mlx-lm runs it with `trust_remote_code`. It needs mlx-lm alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.utils import MODEL_REMAPPING

Weights = dict[str, mx.array]
Sanitize = Callable[[nn.Module, Weights], Weights]


class ModelArgs(dict):  # type: ignore[type-arg]
    """The configuration as it is in config.json."""

    from_dict = classmethod(lambda cls, config: cls(config))


class Absent(nn.Module):  # type: ignore[misc]
    """Replaces a removed attention or MLP and adds nothing; as an attention it counts tokens in the cache."""

    def __init__(self, columns: int, instead: nn.Module) -> None:
        super().__init__()
        self.columns, self.is_local = columns, getattr(instead, "is_local", None)

    def __call__(self, x: mx.array, *arguments: object, **keywords: object) -> mx.array:
        """Zeros of the input's shape."""
        for value in (*arguments, *keywords.values()):
            if hasattr(value, "update_and_fetch"):  # the cache
                zero = mx.zeros((x.shape[0], 1, x.shape[1], self.columns), x.dtype)
                value.update_and_fetch(zero, zero)
        return mx.zeros_like(x)


def Model(args: ModelArgs) -> nn.Module:  # noqa: N802 - mlx-lm's name
    """The family's model with its layers replaced by ones of their own sizes; weights are loaded afterwards."""
    plain = {name: value for name, value in args.items() if name not in ("per_layer_config", "model_file")}
    plain["model_type"] = args["model_type"].removeprefix("darwinlm_")
    name = plain["model_type"]
    family = import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}")
    model = family.Model(family.ModelArgs.from_dict(plain))
    by_sizes: dict[str, list[nn.Module]] = {}
    for index, row in args["per_layer_config"].items():
        if "query_groups" in row:
            raise ValueError(f"layer {index}: mlx-lm runs no layer whose KV heads serve different numbers of heads")
        sizes = {name: value for name, value in row.items() if name != "skip"}
        key = str(sizes)
        if key not in by_sizes:
            by_sizes[key] = family.Model(family.ModelArgs.from_dict(plain | sizes)).model.layers
        layer = by_sizes[key][int(index)]
        model.model.layers[int(index)] = layer
        for name in row.get("skip", ()):
            part = {"attention": "self_attn"}.get(name, name)
            setattr(layer, part, Absent(args["head_dim"], getattr(layer, part)))
    family_sanitize = type(model).sanitize if hasattr(type(model), "sanitize") else lambda _, weights: weights
    model.__class__ = type("Model", (type(model),), {"sanitize": partial(_sanitize, model, family_sanitize)})
    return model


def _sanitize(model: nn.Module, family_sanitize: Sanitize, weights: Weights) -> Weights:
    """Rename weights as the family does, and keep the new model's norms where a removed sub-layer has stored none."""
    weights = family_sanitize(model, weights)
    unread = ("norm.weight", "norm.bias")
    return {name: value for name, value in tree_flatten(model.parameters()) if name.endswith(unread)} | weights
