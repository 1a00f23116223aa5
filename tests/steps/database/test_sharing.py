"""Blocks of the database in several processes: each is factorised and written by one of them, and all work alike."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tests.tiny.checkpoint import stream_over, tiny_checkpoint
from tests.tiny.gloo import in_processes

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime import artifact, parallel
from darwinlm.runtime.artifact import StageFolder, await_files, write_tensors
from darwinlm.runtime.errors import StorageError
from darwinlm.steps.database import build
from darwinlm.steps.database.build import build_database
from darwinlm.steps.database.sharing import owners

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file on POSIX systems only")
LAYERS = 8
BALANCED = 1.2


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "costs", [[1.0] * 32, [1.0, 1.0, 1.0] + [20.0] * 61, [1.0, 6.0] * 16, [5.0, 1.0, 1.0, 1.0] * 16], ids=str
)
def test_every_process_has_as_much_work(costs: list[float], processes: int) -> None:
    """A model with dense blocks before its mixtures, and models whose blocks take turns."""
    chosen = owners(costs, processes)
    for first in range(0, len(costs), processes):
        together = chosen[first : first + processes]
        assert len(set(together)) == len(together), "they work at the same time"
    work = Counter[int]()
    for cost, process in zip(costs, chosen, strict=True):
        work[process] += cost
    assert len(work) == processes
    assert max(work.values()) <= BALANCED * min(work.values())


def _build(rank: int, model: Path, folder: Path, failing: int | None = None) -> dict[str, Any]:
    """Build the database in this process and its others; returns the bytes that this one sends and writes."""
    tokens = torch.arange(32 * 16).view(32, 16) * 7 % 250
    counted = Counter[str]()
    reduce, write = dist.reduce, build.write_tensors

    def reducing(tensor: torch.Tensor, dst: int) -> None:
        counted["sent"] += tensor.nbytes if dst != rank else 0
        reduce(tensor, dst=dst)

    def writing(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        if len([*folder.glob("block_*")]) == failing:
            raise StorageError(f"{path}: the disk is full")
        counted["written"] += sum(tensor.nbytes for tensor in tensors.values())
        write(path, tensors)

    stage = StageFolder(folder, {})
    stream = stream_over(model, tokens[parallel.place() :: parallel.size()], 128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "reduce", reducing)
        patch.setattr(build, "write_tensors", writing)
        try:
            build_database(stage, stream, UnitsSettings(mlp_multiple=8))
        except StorageError as error:
            return {"stopped": str(error)}
    return dict(counted)


@POSIX
def test_any_number_of_processes_writes_the_same_files(tmp_path: Path) -> None:
    """Also after one of them has failed and the run is resumed by another number of them."""
    model = tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=LAYERS)
    alone = _build(0, model, tmp_path / "1")
    assert "sent" not in alone
    stopped = in_processes(_build, tmp_path, model, tmp_path / "4", 2, count=2)
    assert all("the disk is full" in found["stopped"] for found in stopped.values()), "the failure of one stops both"
    left = {path.name for path in (tmp_path / "4").glob("*.safetensors")}
    assert 2 <= len(left) < LAYERS
    for count in (2, 4):
        parts = in_processes(_build, tmp_path, model, tmp_path / str(count), count=count)
        resumed = count == 4
        for kind in ("sent", "written"):
            amounts = [found[kind] for found in parts.values()]
            assert resumed or max(amounts) <= BALANCED * min(amounts), kind
        assert resumed or sum(found["written"] for found in parts.values()) == alone["written"]
        for block in range(LAYERS):
            name = f"block_{block:04d}.safetensors"
            one, several = load_file(tmp_path / "1" / name), load_file(tmp_path / str(count) / name)
            assert one.keys() == several.keys()
            for key, tensor in one.items():
                if tensor.is_floating_point():
                    torch.testing.assert_close(several[key], tensor, rtol=1e-4, atol=1e-5 * float(tensor.abs().max()))
                else:
                    assert torch.equal(several[key], tensor), f"{name} {key}"


def test_a_file_of_another_machine_is_awaited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS shows it late, and an output folder that isn't shared never does."""
    path = tmp_path / "block.safetensors"
    monkeypatch.setattr(artifact.time, "sleep", lambda _: write_tensors(path, {}))
    await_files([path])
    monkeypatch.setattr(artifact, "SEEN_LATE", -1.0)
    with pytest.raises(StorageError, match="give an output folder that all machines of the run share"):
        await_files([path, tmp_path / "another"])
