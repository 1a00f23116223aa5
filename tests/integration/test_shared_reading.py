"""Walks of several processes: each block is read by one of them, which sends it to the others."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from tests.tiny.checkpoint import stream_over, tiny_checkpoint
from tests.tiny.gloo import in_processes
from tests.tiny.stages import run_stages

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.objective.next_token import LANGUAGE
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import CheckpointError, DarwinLMError
from darwinlm.runtime.memory import CPU
from darwinlm.steps.database.build import build_database
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.evaluate.looking_back import Copying, measure_copying
from darwinlm.steps.evaluate.measured_models import MeasuredModel, StoredModel, UniformModel
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.gradients.output_gradients import output_gradients
from darwinlm.steps.refit import strength
from darwinlm.steps.refit.strength import fit_and_choose

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file on POSIX systems only")
LAYERS = 8
BALANCED = {"gradients": 1.2, "database": 1.2}
UNEQUAL = 1.6
"""Largest share relative to the smallest one, by walk; blocks of smaller models are unequal."""
TEXT = torch.arange(24 * 16).view(24, 16) * 7 % 250
COPYING = Copying("at once", 8, torch.cat([TEXT[:1, :8], TEXT[:1, :8]], dim=1))
"""Copying of a single sequence: all processes but the first have no text in its walk."""


@pytest.fixture(scope="module", params=["llama", "gemma2", "qwen3_moe"])
def pruned(request, make_run, tmp_path_factory):
    """A dense model, a pruned one, and the database and allocation of a third."""
    folder = tmp_path_factory.mktemp("reading")
    kinds = (
        {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)} if request.param == "gemma2" else {}
    )
    model = tiny_checkpoint(folder / "model", request.param, num_hidden_layers=LAYERS, **kinds)
    stages = run_stages(make_run(model, folder / "run"), "stitch")
    reader = stages.database.reader
    return model, stages.stitch.checkpoint.folder, reader.folder, reader.units, stages.search.uniform


class Counted:
    """Bytes that this process does things with, by the walk that it is in."""

    def __init__(self) -> None:
        self.bytes: dict[str, Counter[str]] = {}
        self._of_walk = Counter[str]()

    @contextmanager
    def walk(self, name: str) -> Iterator[None]:
        self._of_walk = self.bytes[name] = Counter()
        yield

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is read of blocks and of fitted weights, and what is sent to other processes."""
        read, send, fitted = Checkpoint.read, dist.broadcast, strength.read_tensors

        def reading(checkpoint: Checkpoint, prefix: str = "", **more: Any) -> dict[str, torch.Tensor]:
            tensors = read(checkpoint, prefix, **more)
            if prefix.startswith(checkpoint.family.layers):
                self._of_walk["read"] += sum(tensor.nbytes for tensor in tensors.values())
            return tensors

        def sending(tensor: torch.Tensor, src: int) -> None:
            self._of_walk["sent"] += tensor.nbytes if src == dist.get_rank() else 0
            send(tensor, src=src)

        def of_fitted(path: Path) -> dict[str, torch.Tensor]:
            tensors = fitted(path)
            self._of_walk["read"] += sum(tensor.nbytes for tensor in tensors.values())
            return tensors

        with (
            mock.patch.object(Checkpoint, "read", reading),
            mock.patch.object(dist, "broadcast", sending),
            mock.patch.object(strength, "read_tensors", of_fitted),
        ):
            yield


def _walks(rank: int, pruned: Any, folder: Path, *, shared: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all walks of a run find in one process, and the bytes that it reads and sends in each.

    If blocks aren't `shared`, each process reads all of them.
    """
    del rank
    torch.set_num_threads(1)
    model, small, database, units, uniform = pruned
    dense, stitched = Checkpoint.open(model), Checkpoint.open(small)
    own = TEXT[parallel.place() :: parallel.size()]
    context = Context(CPU, torch.float32, 64, folder, Reporter(quiet=True))
    counted, found = Counted(), dict[str, Any]()
    share = StreamedDecoder.share

    def sharing(decoder: StreamedDecoder, owner: Any) -> None:
        share(decoder, owner if shared else None)

    with mock.patch.object(StreamedDecoder, "share", sharing), counted.watching():
        if shared:
            with counted.walk("database"):
                stage = StageFolder(folder / "database", {})
                build_database(stage, stream_over(dense, own, 64), UnitsSettings(mlp_multiple=8))
        with counted.walk("gradients"):
            stream = stream_over(dense, own, 64, again=True)
            found["gradients"] = [
                (block, {kind: moment.double().norm().item() for kind, moment in moments.items()})
                for block, moments in output_gradients(stream, LANGUAGE, owner=parallel.owner)
            ]
        with counted.walk("refit"):
            (folder / "refit").mkdir(parents=True, exist_ok=True)
            found["refit"] = fit_and_choose(context, dense, stitched, TEXT[:16], TEXT[16:], folder / "refit")
        with counted.walk("evaluate"):
            reader = SimpleNamespace(reader=DatabaseReader(database, dense, units))
            models: dict[str, MeasuredModel] = {
                "dense": StoredModel(context, dense),
                "uniform": UniformModel(context, cast("Any", reader), uniform),
                "stitched": StoredModel(context, stitched),
            }
            decoders = {name: measured.read(TEXT) for name, measured in models.items()}
            for decoder in decoders.values():
                decoder.reserve(0, len(decoders))
            quality = measure_quality(decoders["dense"], decoders, TEXT, batch_tokens=64)
            found["quality"] = {name: dict(of_model.values) for name, of_model in quality.items()}
            few = measure_quality(decoders["dense"], decoders, TEXT[:1], batch_tokens=64)
            found["few"] = {name: dict(of_model.values) for name, of_model in few.items()}
            found["copying"] = measure_copying(decoders, [COPYING], batch_tokens=64)
    return found, {name: dict(of_walk) for name, of_walk in counted.bytes.items()}


def close(ours: Any, theirs: Any) -> None:
    """Compare figures: the same but for rounding in sums."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            close(ours[name], value)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    else:
        assert ours == theirs


def test_each_block_is_read_once_among_all_processes(pruned, tmp_path):
    """Where each process has read the whole model before, it reads a share of it; what they find stays the same."""
    alone, by_one = _walks(0, pruned, tmp_path / "1")
    assert not any("sent" in walk for walk in by_one.values())
    for count in (2, 4):
        found = in_processes(_walks, tmp_path, pruned, tmp_path / str(count), count=count)
        for name, of_one in by_one.items():
            reads = [did[name]["read"] for _, did in found.values()]
            sent = [did[name].get("sent", 0) for _, did in found.values()]
            assert sum(reads) == of_one["read"], (count, name, reads)
            for amounts in (reads, sent):
                assert max(amounts) <= BALANCED.get(name, UNEQUAL) * min(amounts), (count, name, amounts)
        for results, _ in found.values():
            for name in ("refit", "quality", "few"):
                assert results[name] == found[0][0][name]
                close(results[name], alone[name])
            close(results["copying"], alone["copying"])


def test_what_is_sent_is_what_each_process_would_read(pruned, tmp_path):
    """Bit for bit: two processes find the same whether they share their reading or not."""
    shared = in_processes(_walks, tmp_path, pruned, tmp_path / "shared")
    apart = in_processes(_apart, tmp_path, pruned, tmp_path / "apart")
    for rank, (results, _) in shared.items():
        expected, did = apart[rank]
        assert results == expected
        assert not did["gradients"].get("sent", 0)


def _apart(rank: int, pruned: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return _walks(rank, pruned, folder, shared=False)


def _unreadable(rank: int, pruned: Any, folder: Path) -> list[str]:
    """One process can't read one of its blocks, in each walk in turn."""
    model, small, *_ = pruned
    dense, stitched = Checkpoint.open(model), Checkpoint.open(small)
    context, said = Context(CPU, torch.float32, 64, folder, Reporter(quiet=True)), list[str]()
    own, read = TEXT[parallel.place() :: parallel.size()], StreamedDecoder._read

    def reading(decoder: StreamedDecoder, block: int) -> dict[str, torch.Tensor]:
        if rank == 1 and block == LAYERS - 1:
            raise CheckpointError("the disk is gone")
        return read(decoder, block)

    def gradients() -> None:
        for _ in output_gradients(stream_over(dense, own, 64, again=True), LANGUAGE, owner=parallel.owner):
            pass

    def database() -> None:
        build_database(StageFolder(folder / "database", {}), stream_over(dense, own, 64), UnitsSettings(mlp_multiple=8))

    def refit() -> None:
        fit_and_choose(context, dense, stitched, TEXT[:16], TEXT[16:], folder)

    def evaluate() -> None:
        decoder = StoredModel(context, dense).read(TEXT)
        measure_quality(decoder, {"dense": decoder}, TEXT, batch_tokens=64)

    with mock.patch.object(StreamedDecoder, "_read", reading):
        for walk in (gradients, database, refit, evaluate):
            try:
                walk()
            except DarwinLMError as error:
                said.append(str(error))
    return said


@pytest.mark.parametrize("pruned", ["llama"], indirect=True)
def test_a_block_that_one_process_can_not_read_stops_all(pruned, tmp_path):
    for said in in_processes(_unreadable, tmp_path, pruned, tmp_path).values():
        assert said == ["the disk is gone"] * 4
