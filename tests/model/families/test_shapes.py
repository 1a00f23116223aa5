"""Shapes of the modules of a checkpoint."""

import pytest

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.runtime.errors import CheckpointError


def test_query_heads_that_do_not_divide_by_the_groups(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    names = checkpoint.skeleton().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in names.items()}
    for name in ("k_proj", "v_proj"):
        shapes[f"model.layers.1.self_attn.{name}.weight"] = (32, 48)
    with pytest.raises(CheckpointError, match="block 1: 6 query heads don't divide by 4 KV heads"):
        module_shapes(checkpoint, shapes)
