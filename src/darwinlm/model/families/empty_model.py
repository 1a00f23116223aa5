"""A model of transformers without weights, from its configuration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from darwinlm.model.families.ending import AUTOS
from darwinlm.model.families.family import Ending
from darwinlm.model.families.loading import UNUSABLE
from darwinlm.runtime.errors import CheckpointError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def empty_model(
    config: PreTrainedConfig, ending: Ending, folder: Path, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """The model with parameters on the meta device, in evaluation mode, and with the buffers that aren't saved.

    `ending` is what it gives, `folder` where its configuration lies, and `dtype` the type of its forward passes; by
    default, the configuration's. Raises CheckpointError if the configuration describes no valid model.
    """
    options = {} if dtype is None else {"dtype": dtype}
    try:
        with torch.device("meta"):
            auto = AUTOS[ending]
            model: PreTrainedModel = auto.from_config(copy.deepcopy(config), trust_remote_code=False, **options)
    except UNUSABLE as error:
        raise CheckpointError(f"{folder / 'config.json'} describes no valid model: {first_line(error)}") from error
    for module in model.modules():
        names = {name for name, _ in module.named_buffers(recurse=False)}
        if names & module._non_persistent_buffers_set:
            for name in names:
                module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
            model._init_weights(module)
    model.tie_weights()
    return model.eval().requires_grad_(requires_grad=False)
