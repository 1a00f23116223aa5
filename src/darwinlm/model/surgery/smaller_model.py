"""Models of another configuration than their checkpoint's, and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import is_custom
from darwinlm.model.families.pruned import pruned_classes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def described(config: PreTrainedConfig, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with the configuration of a smaller model, whose class transformers then knows."""
    if is_custom(config):
        pruned_classes(checkpoint.family)
    return replace(checkpoint, config=config)


def empty_model(config: PreTrainedConfig, checkpoint: Checkpoint) -> PreTrainedModel:
    """The smaller model on the meta device, except for buffers that aren't saved."""
    return described(config, checkpoint).skeleton()


def fill(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Give a model on the meta device its weights; returns names of parameters without any, and unexpected names."""
    unexpected: list[str] = model.load_state_dict(tensors, assign=True, strict=False).unexpected_keys
    model.tie_weights()
    return [name for name, parameter in model.named_parameters() if parameter.is_meta], unexpected


def block_parameters(model: nn.Module, layers: str) -> int:
    """Number of parameters inside a model's blocks."""
    return sum(parameter.numel() for parameter in model.get_submodule(layers).parameters())


def as_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The model with parameters in another type; buffers are unchanged."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model
