"""Expected uses of tokens: the sum of what transformers predicts at every position that isn't padding."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.steps.vocabulary.predicted_uses import predicted_uses


@pytest.mark.parametrize("batch_tokens", [8, 1000])
def test_the_sum_of_predictions(tiny_llama, batch_tokens):
    checkpoint = Checkpoint.open(tiny_llama)
    tokens = torch.randint(0, checkpoint.config.vocab_size, (5, 8), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([8, 5, 1, 8, 3])
    real = torch.arange(8)[None] < lengths[:, None]
    decoder = StreamedDecoder(checkpoint, tokens, dtype=torch.float32, device=torch.device("cpu"))
    passes = []
    found = predicted_uses(decoder, tokens, real, batch_tokens=batch_tokens, progress=lambda *at: passes.append(at))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tiny_llama)(tokens).logits
    torch.testing.assert_close(found, logits[real].softmax(-1).double().sum(0), rtol=1e-5, atol=1e-6)
    assert found.sum().item() == pytest.approx(int(lengths.sum()))
    assert passes[-1][0] == passes[-1][1] == len(passes)
