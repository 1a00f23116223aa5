"""The basis in which the score is the first number of the last state."""

import pytest
import torch

from darwinlm.formats.gguf.score_basis import ScoreBasis


@pytest.mark.parametrize("first", [None, 3.0, -3.0], ids=["any", "along the axis", "against it"])
def test_the_first_number_is_the_score(first):
    generator = torch.Generator().manual_seed(0)
    row, gains, stream = (torch.randn(8, generator=generator) for _ in range(3))
    if first is not None:
        row = torch.tensor([first, *[0.0] * 7])
    basis = ScoreBasis.of(row, gains)
    (given,) = basis.rows(stream[None])
    assert given.norm() == pytest.approx(float(stream.norm()), rel=1e-5)
    assert float((given * basis.last_gains())[0]) == pytest.approx(float(row @ (gains * stream)), rel=1e-4)


def test_a_block_does_the_same_to_the_stream():
    """What it reads through its norms, and adds, is the same in the basis."""
    generator = torch.Generator().manual_seed(1)
    basis = ScoreBasis.of(torch.randn(8, generator=generator), torch.ones(8))
    kinds = {"attn_norm.weight": (8,), "attn_v.weight": (4, 8), "attn_v.bias": (4,), "attn_output.weight": (8, 4)}
    tensors = {
        name: torch.randn(shape, generator=generator) for name, shape in (kinds | {"attn_output.bias": (8,)}).items()
    }

    def added(block, x):
        read = block["attn_v.weight"] @ (block["attn_norm.weight"] * x) + block["attn_v.bias"]
        return block["attn_output.weight"] @ read + block["attn_output.bias"]

    stream = torch.randn(8, generator=generator)
    (inside,) = basis.rows(stream[None])
    (wanted,) = basis.rows(added(tensors, stream)[None])
    assert torch.allclose(added(basis.block(tensors), inside), wanted, atol=1e-5)
