"""Decoding as a CUDA graph: a step can be recorded, and its replays give the logits of a growing cache."""

import pytest
import torch

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.search.latency.graphs import GraphedDecoding, cache_name
from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME

TOKENS = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@torch.no_grad()
def test_a_replayed_step_decodes(model_type, tiny_folder):
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    model = checkpoint.load(torch.float32)
    named = {cache_name(model): model(input_ids=TOKENS, use_cache=True).past_key_values}
    expected = [model(input_ids=TOKENS[:, :1], use_cache=True, **named).logits for _ in range(3)]
    with pretend_gpu() as gpu:
        decoding = GraphedDecoding(checkpoint.load(torch.float32, NAME), TOKENS.to(NAME), 4)
        for _ in range(2):
            for logits in expected:
                torch.testing.assert_close(decoding.step().cpu(), logits, rtol=1e-4, atol=1e-4)
            decoding.rewind()
    (recording,) = gpu.recordings
    assert recording.replays == 6
