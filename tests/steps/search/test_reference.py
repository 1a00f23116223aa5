"""KL without the dense model's logits, against that with them."""

import pytest
import torch
from tests.tiny.models import FAMILIES, tiny_model
from torch import nn

from darwinlm.model.divergence import DenseDistribution
from darwinlm.model.families.family import families
from darwinlm.model.objective.expected_rows import ExpectedRows, LinearHead
from darwinlm.model.walk.decoder import Decoder

N = 37


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoder_of(name, **overrides):
    return Decoder(tiny_model(name, **overrides), families()[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_heads_of_all_families(name):
    """Gemma 2, Gemma 4 and VaultGemma cap their logits; Granite divides them by 2."""
    found = LinearHead.of(decoder_of(name))
    if name in ("gemma2", "gemma4_text", "gemma4_text_experts", "vaultgemma"):
        assert found is None
    else:
        assert found is not None
        assert found.scale == (0.5 if name.startswith("granite") else 1.0)


def test_heads_that_are_no_plain_linear_layer_are_left_alone():
    """Also where small logits hardly feel their cap."""
    assert LinearHead.of(decoder_of("gemma2", final_logit_softcapping=1e3)) is None
    assert LinearHead.of(decoder_of("gemma2", final_logit_softcapping=None)) is not None
    decoder = decoder_of("llama")
    decoder.model.set_output_embeddings(type("Odd", (nn.Linear,), {})(48, 300, bias=False))
    assert LinearHead.of(decoder) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "granite", "gemma"])
@torch.no_grad()
def test_expected_rows_give_the_divergence_of_the_logits(name, dtype):
    decoder = decoder_of(name)
    decoder.model.to(dtype)
    dense, candidate = (random(N, 48, seed=seed).to(dtype) * 2 for seed in (3, 4))
    expected = DenseDistribution(decoder.head(dense)).kl(decoder.head(candidate))
    found = ExpectedRows(decoder, LinearHead.of(decoder), dense)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(found.kl(candidate), expected, **tolerance)
    torch.testing.assert_close(found.kl(candidate[5:9], 5), expected[5:9], **tolerance)
