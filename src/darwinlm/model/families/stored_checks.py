"""Whether the tensors of a checkpoint are those that its configuration describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from darwinlm.model.families.stored import is_buffer, matches
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import shorten

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint


def check_tensors(checkpoint: Checkpoint) -> None:
    """Refuse weights that don't fit the configuration. Raises CheckpointError, with the name of a tensor."""
    shapes, model = checkpoint.shapes(), checkpoint.outline
    for name, tensor in model.state_dict().items():
        if name not in shapes:
            if name in checkpoint.tied:
                continue
            raise CheckpointError(
                f"{checkpoint.folder} lacks the tensor {name}, which its config.json requires: fetch the model again"
            )
        if shapes[name] != tuple(tensor.shape):
            raise CheckpointError(
                f"{checkpoint.folder}: the tensor {name} is {_sizes(shapes[name])}, but config.json requires "
                f"{_sizes(tuple(tensor.shape))}: fetch the model again"
            )
    for name in sorted(checkpoint.tensors.keys() - model.state_dict().keys()):  # which would be ignored silently
        if name not in checkpoint.tied and not is_buffer(name) and not matches(name, checkpoint.ignored):
            raise CheckpointError(
                f"{checkpoint.folder} holds the tensor {shorten(name)}, which a {checkpoint.family.model_type} model "
                "with its config.json does not have: fetch the model again"
            )
    _check_tied(checkpoint)


def _check_tied(checkpoint: Checkpoint) -> None:
    """Refuse a head that should be the embedding and isn't: transformers uses both, but saves only one."""
    for name, original in checkpoint.tied.items():
        if {name, original} <= checkpoint.tensors.keys():
            tensor, tied_to = checkpoint.read(name)[""], checkpoint.read(original)[""]
            if tensor.shape != tied_to.shape or not torch.equal(tensor, tied_to):
                raise CheckpointError(
                    f"{checkpoint.folder} holds {name} and another {original}, but its config.json says that they are "
                    'the same: set "tie_word_embeddings" to false there, or remove the tensor that is wrong'
                )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a number"
