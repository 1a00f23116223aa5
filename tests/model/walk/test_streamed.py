"""A decoder that reads blocks as a walk reaches them, against one that holds the whole model: bit for bit the same."""

import pytest
import torch
from tests.tiny.models import tiny_model
from tests.tiny.stages import result
from tests.tiny.whole import placed_in
from transformers import AutoModelForCausalLM

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk import decoder as decoding
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import HEAD, StreamedDecoder
from darwinlm.steps.evaluate.looking_back import Copying, measure_copying
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.module_cache import PlacedModules
from darwinlm.steps.search.slopes import Gradients


class Narrow(StreamedDecoder):
    """Nothing may stay; notes which blocks are read, and the most that are loaded at once."""

    def __init__(self, *arguments, **named):
        self.read, self.most = [], 0
        super().__init__(*arguments, **named)
        self._staying._room = lambda reserved: 0

    def load(self, block, *following):
        self.read.append(block)
        weights = super().load(block, *following)
        self.most = max(self.most, len(self._loaded - {HEAD}))
        return weights


def allocations(space):
    """A base, a candidate that changes all blocks, and some that change only later ones."""
    base = tuple(max(top - 1, 0) for top in space.dense)
    depth = len(space.modules) // 2
    later = [(*base[:-at], *(top // 2 for top in space.dense[-at:])) for at in range(1, depth, 2)]
    return base, [tuple(top // 2 for top in space.dense), base, *later]


# Gemma 4's blocks reuse keys and values, and get inputs of their own; Granite's head is tied and scaled.
@pytest.mark.parametrize("model_type", ["llama", "gemma4_text", "qwen3_moe"])
def test_losses_and_slopes_are_those_of_the_whole_model(model_type, tiny_folder, make_run, tmp_path):
    run = make_run(tiny_folder(model_type), tmp_path / "run")
    whole, texts = placed_in(run)
    tokens, window = texts["fitness"].tokens[:4], (0, 4)
    decoder = Narrow(result(run, "dense"), tokens, dtype=torch.float32, device=torch.device("cpu"))
    streamed = PlacedModules(decoder, whole.database, whole.space)
    memory = HiddenMemory(tmp_path, "file")
    fitness = [Fitness(whole, tokens, batch_tokens=64), Fitness(streamed, tokens, batch_tokens=64, memory=memory)]
    assert torch.equal(fitness[0].reference.dense, fitness[1].reference.dense)
    base, candidates = allocations(whole.space)
    decoder.read.clear()
    expected, found = (each.kl_on(candidates, window) for each in fitness)
    assert found == expected
    assert decoder.read == list(range(len(decoder.blocks))), "all candidates in one walk"
    slopes = [Gradients(each, whole.database) for each in fitness]
    assert slopes[1].around(base, window) == slopes[0].around(base, window)
    assert decoder.most == 1
    assert streamed.current == list(whole.space.dense)


@pytest.mark.parametrize("model_type", ["llama", "gemma4_text"])
def test_an_evaluation_reads_every_block_once_for_text_and_once_for_copying(
    model_type, tiny_folder, tmp_path, monkeypatch
):
    """And holds the logits of a few tokens at a time."""
    monkeypatch.setattr(decoding, "CPU_LOGITS", 0)
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    text = torch.randint(3, 60, (7, 16), generator=torch.Generator().manual_seed(0))
    kinds = [
        Copying("at once", 4, torch.cat([text[:3, :4], text[:3, :4]], dim=1)),
        Copying("apart", 3, torch.cat([text[3:5, :9], text[3:5, :3]], dim=1)),
    ]
    whole = checkpoint.load(torch.float32, "cpu")
    narrow = Narrow(checkpoint, text, dtype=torch.float32, device=torch.device("cpu"))
    blocks, steps = list(range(len(narrow.blocks))), list[tuple[int, int]]()

    def measured(model):
        quality = measure_quality(
            model, {"it": model}, text, batch_tokens=32, progress=lambda *step: steps.append(step)
        )
        return quality, measure_copying({"it": model}, kinds, batch_tokens=16)

    found = measured(narrow)
    assert narrow.read == 2 * blocks
    assert steps == [(4, 4)], "four batches through one model"
    narrow.read.clear()
    assert measure_copying({"it": narrow}, [], batch_tokens=16) == {"it": []}
    assert not narrow.read, "nothing to read"
    on_disk = HiddenMemory(tmp_path, "file")
    assert measure_quality(narrow, {"it": narrow}, text, batch_tokens=32, memory=on_disk) == found[0]
    (expected,), (copied,) = (each.values() for each in measured(whole))
    (quality,), (scores,) = (each.values() for each in found)
    assert (quality.perplexity, quality.tokens) == (pytest.approx(expected.perplexity, rel=1e-5), expected.tokens)
    assert [each.name for each in scores] == ["at once", "apart"]
    assert [each.loss for each in scores] == pytest.approx([each.loss for each in copied], rel=1e-5)
    assert [each.tokens for each in scores] == [3 * 3, 2 * 2]


@pytest.mark.parametrize("model_type", ["gemma", "gemma2", "gemma3_text", "gemma4_text", "vaultgemma"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embeddings_are_scaled_in_the_type_of_the_passes(tmp_path, model_type, dtype):
    """The square root of this hidden size isn't a bfloat16 number, the type in which the model is stored."""
    tiny_model(model_type, hidden_size=96).to(torch.bfloat16).save_pretrained(tmp_path)
    ids, checkpoint = torch.arange(3, 15)[None], Checkpoint.open(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(checkpoint.load(dtype)(ids).logits, stock(ids).logits)
    streamed = StreamedDecoder(checkpoint, ids, dtype=dtype, device=torch.device("cpu")).model
    scales = [name for name, _ in stock.named_buffers() if name.endswith("embed_scale")]
    assert all(torch.equal(streamed.get_buffer(name), stock.get_buffer(name)) for name in scales)
