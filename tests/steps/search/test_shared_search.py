"""A search in several processes: each reads, cuts and solves for its own blocks, and all find what one finds."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.gloo import in_processes
from tests.tiny.stages import result

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime import memory as memories
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import TimeLimitError
from darwinlm.steps.database.sharing import block_owner
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.search import module_cache, slopes
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.module_cache import PlacedModules
from darwinlm.steps.search.slopes import Gradients

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file on POSIX systems only")
LAYERS = 8
BALANCED = 1.2
CPU = torch.device("cpu")
TEXT = torch.arange(8 * 16).view(8, 16) * 7 % 250


class Noted(StreamedDecoder):
    """Notes the bytes that are read."""

    read = 0

    def _from_checkpoint(self, block):
        weights = super()._from_checkpoint(block)
        self.read += sum(weight.nbytes for weight in weights.values())
        return weights


@pytest.fixture(scope="module", params=["llama", "gemma2", "qwen3_moe"])
def database(request, make_run, tmp_path_factory):
    """A model, the folder of its database, its units and its search space."""
    folder = tmp_path_factory.mktemp("shared")
    kinds = (
        {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)} if request.param == "gemma2" else {}
    )
    model = tiny_checkpoint(folder / "model", request.param, num_hidden_layers=LAYERS, **kinds)
    run = make_run(model, folder / "run")
    reader = result(run, "database").reader
    return model, reader.folder, reader.units, result(run, "plan").space


def placed_in(model: Path, folder: Path, units: UnitsSettings, space: Any) -> tuple[Noted, PlacedModules]:
    checkpoint = Checkpoint.open(model)
    owner = block_owner(module_shapes(checkpoint), units, checkpoint.config.hidden_size, LAYERS, parallel.size())
    decoder = Noted(checkpoint, TEXT, dtype=torch.float32, device=CPU, owner=owner)
    return decoder, PlacedModules(decoder, DatabaseReader(folder, checkpoint, units), space)


def _search(rank: int, database: Any, room: int | None = None) -> dict[str, Any]:
    """What one process finds and does: losses of some candidates, and slopes around one of them.

    `room` are the blocks that stay in each process, if not all of them.
    """
    del rank
    torch.set_num_threads(1)
    decoder, placed = placed_in(*database)
    if room is not None:
        largest = max(sum(weight.numel() for weight in block.parameters()) for block in decoder.blocks) * 4
        decoder._staying._room = lambda reserved: room * largest
        decoder.reserve(0)
    dense = placed.space.dense
    candidates = [tuple(top // part for top in dense) for part in (2, 3, 4)]
    counted = Counter[str]()
    send, small, inner = dist.broadcast, module_cache.shrink_tensors, slopes.inner_products

    def sending(tensor, src):
        counted["sent"] += tensor.nbytes if src == dist.get_rank() else 0
        send(tensor, src=src)

    def cutting(*arguments):
        counted["cut"] += 1
        return small(*arguments)

    def solving(factors, C):
        counted["solved"] += C.numel()
        return inner(factors, C)

    with (
        mock.patch.object(dist, "broadcast", sending),
        mock.patch.object(module_cache, "shrink_tensors", cutting),
        mock.patch.object(slopes, "inner_products", solving),
    ):
        run = decoder.run_block

        def running(block, hidden, arguments):
            counted["dense passes"] += hidden.shape[0] * hidden.shape[1]
            return run(block, hidden, arguments)

        with mock.patch.object(decoder, "run_block", running):
            fitness = Fitness(placed, TEXT, batch_tokens=TEXT.shape[1])
        losses = fitness.kl_on(candidates, (0, len(TEXT)))
        one = fitness.kl_on([(*dense[:-1], 0)], (3, 4))  # of several processes, all but one have no work
        around = [Gradients(fitness, placed.database).around(candidates[0], window) for window in ((0, 8), (2, 3))]
        again = fitness.kl_on(candidates, (0, len(TEXT)))
    assert again == losses
    did = {"read": decoder.read, "factors": placed.database.reads, **counted}
    return {"losses": losses, "one": one, "around": around, "did": did}


def test_any_number_of_processes_finds_the_same(database, tmp_path):
    """Each block is read once, also by four processes each of which has room for a quarter of the model."""
    alone = _search(0, database)
    model = sum(path.stat().st_size for path in database[0].glob("*.safetensors"))
    for count, room in ((2, None), (4, LAYERS // 4)):
        found = in_processes(_search, tmp_path, database, room, count=count)
        for one in found.values():
            assert one["losses"] == alone["losses"]
            assert one["one"] == alone["one"]
            for ours, theirs in zip(one["around"], alone["around"], strict=True):
                for row, expected in zip(ours, theirs, strict=True):
                    # Slopes are sums over sequences in another order; those near zero keep the rounding of large terms.
                    assert row == pytest.approx(expected, rel=1e-5, abs=1e-5 * max(map(abs, expected)))
            assert one["around"] == found[0]["around"]
            assert one["around"][1] == alone["around"][1], "a sum over one sequence has nothing to round"
        work = [one["did"] for one in found.values()]
        few = {"sent"}
        if max(module.levels[-1].sizes.experts for module in database[-1].modules):
            few.add("solved")  # of its MLPs, one is no mixture
        if "gemma2" in Checkpoint.open(database[0]).family.model_type:
            few.add("factors")  # slopes in front of a norm are solved for where the text is, here a single sequence
        for kind in set().union(*work) - few:
            amounts = [did.get(kind, 0) for did in work]
            assert max(amounts) <= BALANCED * min(amounts), (kind, amounts)
        assert sum(did["read"] for did in work) < model
        assert sum(did["dense passes"] for did in work) == alone["did"]["dense passes"]


def _failing(rank: int, database: Any, block: int) -> dict[str, Any]:
    """One process runs out of time in a block, then out of memory; afterwards all go on."""
    torch.set_num_threads(1)
    decoder, placed = placed_in(*database)
    fitness = Fitness(placed, TEXT, batch_tokens=TEXT.shape[1])
    candidates, run, failures = [tuple(top // 2 for top in placed.space.dense)], decoder.run_block, []

    def running(at, hidden, arguments):
        if rank == 1 and at == block and failures:
            raise failures.pop()
        return run(at, hidden, arguments)

    decoder.run_block = running
    failures.append(TimeLimitError("time is up"))
    with pytest.raises(TimeLimitError, match="time is up"):
        fitness.kl_on(candidates, (0, 8))
    failures.append(torch.OutOfMemoryError("full"))
    halvings = memories.memory_of(CPU)._halvings
    losses = fitness.kl_on(candidates, (0, 8))
    failures.append(RuntimeError("broken"))
    said = ""
    try:
        Gradients(fitness, placed.database).around(candidates[0], (0, 8))
    except Exception as error:  # noqa: BLE001 - of another kind in each process
        said = str(error)
    return {"losses": losses, "halved": memories.memory_of(CPU)._halvings - halvings, "said": said}


@pytest.mark.parametrize("database", ["llama"], indirect=True)
@pytest.mark.parametrize("block", [0, LAYERS - 1])
def test_what_fails_in_one_process_fails_or_begins_again_in_all(database, tmp_path, block):
    alone = _search(0, database)["losses"][0]
    for rank, found in in_processes(_failing, tmp_path, database, block).items():
        assert found["losses"] == [alone]
        assert found["halved"] == 1
        assert found["said"] == ("broken" if rank == 1 else "process 1 stopped: RuntimeError: broken")
