"""The shards of a stitched model: any number of processes writes the same, and only a whole one has an index."""

import errno
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.gloo import in_processes
from tests.tiny.process import SERVER
from tests.tiny.stages import result
from transformers import AutoModelForCausalLM

from darwinlm.formats.transformers import saved
from darwinlm.formats.transformers.saved import save_index
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.stored import INDEX
from darwinlm.runtime import artifact
from darwinlm.runtime.errors import DarwinLMError, NumericsError, StorageError
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.stitch.stitch import stitch, write_stitched

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file on POSIX systems only")
LAYERS = 8
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module", params=["llama", "gemma2", "qwen3_moe"])
def cut(request, make_run, tmp_path_factory):
    """A model, the folder of its database, its units, and an allocation with an empty block and a whole one."""
    folder = tmp_path_factory.mktemp("stitched")
    kinds = (
        {"layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2)} if request.param == "gemma2" else {}
    )
    model = tiny_checkpoint(folder / "model", request.param, num_hidden_layers=LAYERS, **kinds)
    run = make_run(model, folder / "run")
    reader, dense = result(run, "database").reader, result(run, "plan").space.dense
    levels = [level // 2 for level in dense]
    levels[2:6] = 0, 0, dense[4], dense[5]
    return model, reader.folder, reader.units, tuple(levels)


def _reader(cut: Any) -> DatabaseReader:
    model, database, units, _ = cut
    return DatabaseReader(database, Checkpoint.open(model), units)


def _write(rank: int, cut: Any, folder: Path) -> dict[str, int]:
    """Write the model in this process and its others; returns the bytes that this one reads and writes of weights."""
    del rank
    counted, read, write = Counter[str](), Checkpoint.read, saved.write_tensors

    def reading(checkpoint: Checkpoint, prefix: str = "", **more: Any) -> dict[str, torch.Tensor]:
        tensors = read(checkpoint, prefix, **more)
        counted["read"] += sum(tensor.nbytes for tensor in tensors.values())
        return tensors

    def writing(path: Path, tensors: dict[str, torch.Tensor], *more: Any) -> None:
        counted["written"] += sum(tensor.nbytes for tensor in tensors.values())
        write(path, tensors, *more)

    with mock.patch.object(Checkpoint, "read", reading), mock.patch.object(saved, "write_tensors", writing):
        write_stitched(_reader(cut), cut[-1], folder)
    return dict(counted)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_shards_are_the_model(cut, tmp_path):
    """It is the one that is put together in memory, and transformers loads it; an empty block has no shard."""
    _write(0, cut, tmp_path / "model")
    checkpoint, small = Checkpoint.open(tmp_path / "model"), stitch(_reader(cut), cut[-1])
    assert checkpoint.config.architectures == [type(small).__name__]
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    for loaded in (checkpoint.load(small.dtype), theirs):
        found = loaded.state_dict()
        assert found.keys() == small.state_dict().keys()
        for name, tensor in small.state_dict().items():
            assert torch.equal(found[name], tensor), name
    index = json.loads((tmp_path / "model" / INDEX).read_text(encoding="utf-8"))
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    blocks = {int(name.split(".")[2]) for name in tensors if ".layers." in name}
    assert len(shards) == 1 + len(blocks)
    assert all(shard.name.endswith(f"-of-{len(shards):05d}.safetensors") for shard in shards)


@POSIX
def test_any_number_of_processes_writes_the_same_bytes(cut, tmp_path):
    alone = _write(0, cut, tmp_path / "1")
    expected = contents(tmp_path / "1")
    assert INDEX in expected
    for count in (2, 4):
        did = in_processes(_write, tmp_path, cut, tmp_path / str(count), count=count)
        assert contents(tmp_path / str(count)) == expected
        assert sum(found["written"] for found in did.values()) == alone["written"]
        assert sum(found["read"] for found in did.values()) == alone["read"]
        assert max(found["written"] for found in did.values()) < (0.7 if count == 2 else 0.5) * alone["written"]


def _failing(rank: int, cut: Any, folder: Path, error: Exception) -> str:
    """The last process can't write its last shard."""
    replace, shards = Path.replace, []

    def replacing(path: Path, to: Path) -> Path:
        shards.append(to)
        if rank == 1 and len(shards) == 3:
            raise error
        return replace(path, to)

    with mock.patch.object(Path, "replace", replacing):
        try:
            write_stitched(_reader(cut), cut[-1], folder)
        except DarwinLMError as failure:
            return str(failure)
    return ""


@POSIX
@pytest.mark.parametrize("cut", ["llama"], indirect=True)
def test_a_full_disk_leaves_no_index_and_is_told_alike(cut, tmp_path):
    """What is there stays, and the next run writes the rest."""
    folder = tmp_path / "model"
    said = set(in_processes(_failing, tmp_path, cut, folder, FULL).values())
    assert len(said) == 1
    (message,) = said
    assert "the disk is full: free some space, then rerun the same command; finished work is kept" in message
    assert str(folder / "model-") in message
    left = contents(folder)
    assert INDEX not in left
    assert not [name for name in left if name.startswith(".")]
    with pytest.raises(DarwinLMError, match="holds no safetensors weights"):
        Checkpoint.open(folder)
    kept = {name: (folder / name).stat().st_mtime_ns for name in left if name.endswith(".safetensors")}
    _write(0, cut, folder)
    assert all((folder / name).stat().st_mtime_ns == time for name, time in kept.items())
    _write(0, cut, tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("cut", ["llama"], indirect=True)
def test_a_full_disk_beside_the_weights_is_told(cut, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise FULL

    monkeypatch.setattr(saved, "for_other_engines", full)
    with pytest.raises(StorageError, match=r"model-00001-of-00008\.safetensors: the disk is full: free some space"):
        write_stitched(_reader(cut), cut[-1], tmp_path / "model")
    assert contents(tmp_path / "model") == {}


def _killed(rank: int, meeting: Path, cut: Any, folder: Path) -> None:
    """One of two processes is killed while it writes a shard."""
    write = saved.write_tensors

    def writing(path: Path, *more: Any) -> None:
        write(path, *more)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.distributed.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{meeting}")
    with mock.patch.object(saved, "write_tensors", writing):
        write_stitched(_reader(cut), cut[-1], folder)


@POSIX
@pytest.mark.parametrize("cut", ["llama"], indirect=True)
def test_a_killed_owner_leaves_no_index(cut, tmp_path):
    folder = tmp_path / "model"
    both = [SERVER.Process(target=_killed, args=(rank, tmp_path / "meeting", cut, folder)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert both[1].exitcode == -signal.SIGKILL
    assert both[0].exitcode == 1, "the connection is lost"
    assert not (folder / INDEX).exists()
    assert len([*folder.glob("*.safetensors")]) < LAYERS
    _write(0, cut, folder)
    _write(0, cut, tmp_path / "whole")
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("cut", ["llama"], indirect=True)
@pytest.mark.parametrize("part", ["model.norm.weight", "model.layers.4."])
def test_weights_that_are_not_finite_are_not_written(cut, tmp_path, monkeypatch, part):
    read = Checkpoint.read

    def reading(checkpoint: Checkpoint, prefix: str = "", **more: Any) -> dict[str, torch.Tensor]:
        tensors = read(checkpoint, prefix, **more)
        return {name: tensor * float("nan") for name, tensor in tensors.items()} if prefix == part else tensors

    monkeypatch.setattr(Checkpoint, "read", reading)
    with pytest.raises(
        NumericsError, match=rf"{part}.*numbers that aren't finite \(NaN or infinity\): .* isn't written"
    ):
        write_stitched(_reader(cut), cut[-1], tmp_path / "model")
    assert not (tmp_path / "model" / INDEX).exists()


def test_shards_of_another_machine_are_awaited(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "SEEN_LATE", -1.0)
    with pytest.raises(StorageError, match="was written by another process, but isn't here"):
        save_index(tmp_path, [tmp_path / "model-00001-of-00001.safetensors"])
    assert not (tmp_path / INDEX).exists()
