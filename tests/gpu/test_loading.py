"""Weights that go onto a device a block at a time make the same model as those that transformers loads."""

import pytest
import torch

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import CheckpointError
from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME

TOKENS = torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_nothing_stays_in_main_memory(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    expected = checkpoint.load(torch.float32)(input_ids=TOKENS).logits
    with pretend_gpu():
        model = checkpoint.load(torch.float32, NAME)
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {NAME}
        found = model(input_ids=TOKENS.to(NAME)).logits.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_tensor_that_is_missing_is_named(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    del checkpoint.tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.norm\.weight: fetch the model again"):
        checkpoint.load(torch.float32)
