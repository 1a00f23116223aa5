"""A block run a sub-layer at a time is the block, bit for bit, whatever is kept in memory and whatever is gone."""

import pytest
import torch
from tests.tiny.checkpoint import stream_over
from tests.tiny.models import tiny_model

from darwinlm.families.family import families
from darwinlm.runtime.errors import NumericsError
from darwinlm.streaming.outputs import output_projection
from darwinlm.surgery import sublayers
from darwinlm.surgery.sublayers import BlockWalk

TOKENS = torch.randint(3, 250, (7, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def room(monkeypatch):
    """Sets the bytes that a projection's inputs may take."""
    return lambda size: monkeypatch.setattr(sublayers, "free_bytes", lambda _: size / sublayers.SHARE)


def walked(folder, dtype=torch.float32):
    stream = stream_over(folder, TOKENS, 48, dtype=dtype)
    for block in range(stream.checkpoint.n_blocks):
        stream.load(block, block + 1)
        walk = BlockWalk(stream, block)
        for kind in stream.checkpoint.family.kinds:
            if output_projection(stream.decoder.blocks[block], stream.checkpoint.family, kind) is not None:
                list(walk.inputs(kind))
            walk.finish(kind)
        stream.unload(block)
    return stream.hidden


OTHERWISE = [(0, torch.float32), (1 << 30, torch.float32), (10_000, torch.bfloat16)]
CASES = [(name, 10_000, torch.float32) for name in sorted(families())]
CASES += [(name, *how) for name in ("llama", "gemma2", "gemma4_text", "lfm2", "mixtral") for how in OTHERWISE]


@pytest.mark.parametrize(("model_type", "memory", "dtype"), CASES)
def test_two_halves_are_the_whole_block(tiny_folder, model_type, memory, dtype, room):
    room(memory)
    whole = stream_over(tiny_folder(model_type), TOKENS, 48, dtype=dtype)
    for block in range(whole.checkpoint.n_blocks):
        whole.load(block, block + 1)
        whole.run(block)
    halves = walked(tiny_folder(model_type), dtype)
    assert all(torch.equal(left, right) for left, right in zip(whole.hidden, halves, strict=True))


@pytest.mark.parametrize("memory", [0, 1 << 30])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_a_projection_that_changes_after_its_inputs_were_seen_counts(tiny_folder, memory, kind, room):
    room(memory)
    stream = stream_over(tiny_folder("llama"), TOKENS, 48)
    stream.load(0, 1)
    before = [part.clone() for part in stream.hidden]
    walk = BlockWalk(stream, 0)
    inputs = [x for x, _ in walk.inputs(kind)]
    output = output_projection(stream.decoder.blocks[0], stream.checkpoint.family, kind)
    output.weight.data = torch.randn(output.weight.shape, generator=torch.Generator().manual_seed(1))
    walk.finish(kind)
    for start, x, end in zip(before, inputs, stream.hidden, strict=True):
        assert torch.equal(end, start + output(x))


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_values_that_are_not_finite_are_refused(tmp_path, kind):
    model = tiny_model("llama")
    layer = model.model.layers[1]
    (layer.self_attn.o_proj if kind == "attention" else layer.mlp.down_proj).weight.data[0, 0] = float("inf")
    model.save_pretrained(tmp_path)
    with pytest.raises(NumericsError, match=r"block 1 .*aren't finite"):
        walked(tmp_path)
