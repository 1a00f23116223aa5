"""What is in memory isn't read again: blocks of gradients, of streams of one model, and the head."""

from collections import Counter

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.tiny.checkpoint import stream_over

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shard_reading import TYPES, in_memory, read_spans, spans
from darwinlm.model.objective.next_token import LANGUAGE
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.compute import all_finite
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.memory import CACHES, CPU
from darwinlm.steps.gradients.output_gradients import output_gradients
from darwinlm.steps.refit.strength import fit_and_choose

TEXT = torch.randint(3, 250, (8, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reads(monkeypatch):
    """How often each block of each folder was read, and each head."""
    counts: Counter[tuple[str, object]] = Counter()
    block, whole = StreamedDecoder._read, Checkpoint.read

    def read_block(self, number):
        counts[self.checkpoint.folder.name, number] += 1
        return block(self, number)

    def read(self, prefix="", **more):
        if prefix in ("lm_head.weight", "model.embed_tokens.weight"):
            counts[self.folder.name, "head"] += 1
        return whole(self, prefix, **more)

    monkeypatch.setattr(StreamedDecoder, "_read", read_block)
    monkeypatch.setattr(Checkpoint, "read", read)
    return counts


@pytest.mark.parametrize("room", [True, False])
def test_gradients_keep_blocks_where_there_is_room(tiny_llama, reads, monkeypatch, room):
    if not room:
        monkeypatch.setitem(CACHES, "blocks", 0.0)
    stream = stream_over(tiny_llama, TEXT, 64, again=True)
    found = dict(output_gradients(stream, LANGUAGE))
    assert {count for (_, block), count in reads.items() if block != "head"} == {1 if room else 2}
    assert len(found) == stream.checkpoint.n_blocks


def test_a_refit_reads_each_block_once_to_fit_and_once_to_compare(tiny_llama, finished_llama, reads, tmp_path):
    stitched = Checkpoint.open(finished_llama / "stages" / "stitch" / "model")
    context = Context(CPU, torch.float32, 64, tmp_path, Reporter(quiet=True))
    record = fit_and_choose(context, Checkpoint.open(tiny_llama), stitched, TEXT[:6], TEXT[6:], tmp_path)
    assert len(record["kl_by_strength"]) == 4
    blocks = range(stitched.n_blocks)
    assert [reads[tiny_llama.name, block] for block in blocks] == [1] * len(blocks), "for both texts"
    assert [reads["model", block] for block in blocks] == [2] * len(blocks), "for both texts, and for all strengths"
    assert max(count for (_, block), count in reads.items() if block == "head") <= 2


def test_streams_beside_each_other_compute_what_they_do_alone(tiny_llama):
    first = stream_over(tiny_llama, TEXT[:4], 64)
    second = stream_over(tiny_llama, TEXT[4:], 64, beside=first)
    alone = stream_over(tiny_llama, TEXT[4:], 64)
    for block, *_ in zip(first.walk(), second.walk(), alone.walk(), strict=True):
        weights = [stream.decoder.blocks[block].mlp.down_proj.weight for stream in (first, second, alone)]
        assert weights[0].data_ptr() == weights[1].data_ptr() != weights[2].data_ptr()
        for stream in (first, second, alone):
            stream.run(block)
    for found, expected in zip(second.hidden, alone.hidden, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_read_as_safetensors_reads_it(tmp_path, name):
    dtype = TYPES[name]
    raw = torch.randint(0, 2 if dtype == torch.bool else 100, (7, 6)).to(torch.uint8)
    tensors = {"a": raw.view(-1)[:40].clone().view(dtype).view(5, -1), "one": raw.view(-1)[:8].view(dtype)[0].clone()}
    tensors["none"] = torch.zeros((0, 3), dtype=dtype)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    found = read_spans(path, spans(path).items(), in_memory)
    with safe_open(path, framework="pt") as stream:
        for key in tensors:
            expected = stream.get_tensor(key)
            assert (found[key].dtype, found[key].shape) == (dtype, expected.shape)
            assert torch.equal(found[key].reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


def test_a_shard_that_shrinks_while_it_is_read(model_copy):
    checkpoint = Checkpoint.open(model_copy)
    checkpoint.read(checkpoint.block_prefix(0), mapped=False)
    path = model_copy / "model.safetensors"
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=r"is damaged \(it ends at byte .*, before its last tensor\): fetch"):
        checkpoint.read(mapped=False)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"can't be read any more .*: bring back its disk or folder"):
        checkpoint.read(mapped=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_seen_wherever_it_is(dtype, number):
    for size in (1, 7, 64, 1001):
        tensor = torch.linspace(-3, 3, size).to(dtype)
        assert bool(all_finite(tensor))
        for place in {0, size // 2, size - 1}:
            wrong = tensor.clone()
            wrong[place] = number
            assert not bool(all_finite(wrong))
    assert bool(all_finite(torch.zeros(0, 4, dtype=dtype)))
