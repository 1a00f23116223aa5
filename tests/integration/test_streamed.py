"""A decoder that reads blocks as a walk reaches them, against one that holds the whole model: bit for bit the same."""

import pytest
import torch
from tests.tiny.searching import placed_in

from darwinlm.search.evaluate.fitness import Clock, Fitness
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.predict.gradients import Gradients
from darwinlm.stages.model import DENSE
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.streamed import HEAD, StreamedDecoder


class Narrow(StreamedDecoder):
    """Nothing may stay; notes which blocks are read, and the most that are loaded at once."""

    def __init__(self, *arguments, **named):
        self.read, self.most = [], 0
        super().__init__(*arguments, **named)
        self._staying._room = lambda reserved: 0

    def load(self, block):
        self.read.append(block)
        weights = super().load(block)
        self.most = max(self.most, len(self._loaded - {HEAD}))
        return weights


def allocations(space):
    """A base, a candidate that changes all blocks, and some that change only later ones."""
    base = tuple(max(top - 1, 0) for top in space.dense)
    depth = len(space.modules) // 2
    later = [(*base[:-at], *(top // 2 for top in space.dense[-at:])) for at in range(1, depth, 2)]
    return base, [tuple(top // 2 for top in space.dense), base, *later]


# Gemma 4's blocks reuse keys and values, and get inputs of their own; Granite's head is tied and scaled.
@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma4_text", "granite", "qwen3_moe"])
def test_losses_and_slopes_are_those_of_the_whole_model(model_type, tiny_folder, make_run, tmp_path):
    run = make_run(tiny_folder(model_type), tmp_path / "run")
    whole, texts = placed_in(run)
    tokens, window = texts["fitness"].tokens[:4], (0, 4)
    decoder = Narrow(run[DENSE], tokens, dtype=torch.float32, device=torch.device("cpu"))
    streamed = PlacedModules(decoder, whole.database, whole.space)
    memory = HiddenMemory(tmp_path, "file")
    fitness = [Fitness(whole, tokens, batch_tokens=64), Fitness(streamed, tokens, batch_tokens=64, memory=memory)]
    fitness[1]._inputs._room = lambda reserved: 0
    assert torch.equal(fitness[0].dense, fitness[1].dense)
    base, candidates = allocations(whole.space)
    for each in fitness:
        each.set_base(base)
    decoder.read.clear()
    expected, found = (each.kl_on(candidates, window) for each in fitness)
    assert found == expected
    assert decoder.read == list(range(len(decoder.blocks))), "all candidates in one walk"
    with_memory = {"batch_tokens": 64, "clock": Clock(), "memory": memory}
    slopes = [
        Gradients(placed, whole.database, tokens, fitness[0].dense, **with_memory) for placed in (whole, streamed)
    ]
    assert slopes[1].around(base, window) == slopes[0].around(base, window)
    assert decoder.most == 1
    assert streamed.current == list(whole.space.dense)


# gpt-oss stores its experts' projections transposed, and rows of gate and up in turn.
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe", "gpt_oss"])
def test_a_module_is_the_same_when_only_its_output_projection_was_kept(
    model_type, tiny_folder, make_run, tmp_path, monkeypatch
):
    placed, _ = placed_in(make_run(tiny_folder(model_type), tmp_path / "run"))
    keys = [(index, top // 2) for index, top in enumerate(placed.space.dense)]
    placed._cache._room = lambda reserved: 1 << 30
    whole = [placed.module(*key).state_dict() for key in keys]
    outputs = [module.get_parameter(name).nbytes for module, name in placed._cache._whole.values()]
    placed._cache._room = lambda reserved: sum(outputs)
    placed.reserve(0)
    for key in keys:
        placed.module(*key)
    monkeypatch.setattr(placed.database, "weight", lambda *_: pytest.fail("computed again"))
    for key, expected in zip(keys, whole, strict=True):
        assert placed._cache.module(key) is None
        found = placed.module(*key).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
