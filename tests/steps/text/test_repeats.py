"""Repeated passages: a share of every sequence, of its own text."""

import numpy as np
import pytest
import torch

from darwinlm.steps.text.repeats import with_repeats

ORDINARY = np.arange(1_000_000, 1_020_000)
"""Tokens for random passages; no text here has any of them."""


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("length", [8, 31, 512])
def test_the_share_of_each_block_repeats_what_stands_before(share, length):
    tokens = torch.arange(6 * length).view(6, length)
    found = with_repeats(tokens, share=share, seed=3, ordinary=ORDINARY)
    assert found.shape == tokens.shape
    assert torch.equal(found[:, 0], tokens[:, 0])
    for before, after in zip(tokens, found, strict=True):
        assert len(after.unique()) == length - round(share * length), "all others occur once"
        assert set(after.tolist()) <= {*before.tolist(), *ORDINARY.tolist()}, "nothing of another block"
        firsts = [token for place, token in enumerate(after.tolist()) if token not in after[:place].tolist()]
        own = [token for token in firsts if token < ORDINARY[0]]
        expected = [token for token in before[: len(firsts)].tolist() if token in own]
        assert sorted(own) == expected, "the block's own text, some of it shuffled or replaced"
