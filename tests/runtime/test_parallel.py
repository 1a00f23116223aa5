"""Several processes: values, sums and failures come together, and a single process needs nothing of it."""

import sys

import pytest
import torch
from tests.tiny.gloo import in_processes

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import DarwinLMError, DataError, NumericsError, ParallelError, install, missing_extra


def _everything(rank):
    found = {"rank": parallel.rank(), "size": parallel.size(), "main": parallel.is_main()}
    found["sum"] = parallel.all_reduce(torch.tensor([1.0 + rank])).tolist()
    found["gathered"] = parallel.gather({"from": rank})
    found["broadcast"] = parallel.broadcast(f"of {rank}")
    found["mine"], found["portion"] = list(parallel.mine(range(5))), list(parallel.portion(range(5)))
    found["reduced"] = parallel.reduce(torch.tensor([1.0 + rank]), to=1).tolist()
    found["owners"] = [parallel.owner(number) for number in range(5)]
    found["sent"] = parallel.send(torch.tensor([1.0 + rank]), source=1).tolist()
    found["met"] = _failing(lambda: _meeting(rank, NumericsError("NaN")))
    found["met inside"] = _failing(lambda: _meeting(rank, KeyError("k")))
    found["alone"] = _failing(lambda: _agreed(NumericsError("block 3: NaN") if rank == 1 else None))
    found["both"] = _failing(lambda: _agreed(DataError(f"of {rank}")))
    found["main fails"] = _failing(lambda: _main_first(rank, missing_extra("p", "e", "x")))
    found["main breaks"] = _failing(lambda: _main_first(rank, KeyError("k")))
    parallel.gather(None)
    return found


def _agreed(error):
    with parallel.agree():
        if error is not None:
            raise error


def _meeting(rank, error):
    """One fails between two meetings, inside an outer agreement; the other finds out when they meet next."""
    with parallel.agree(), parallel.agree():
        assert parallel.meet(rank) == [0, 1]
        if rank == 1:
            raise error
        parallel.meet(rank)
        raise AssertionError("the other one has failed")


def _main_first(rank, error):
    with parallel.main_first():
        if rank == 0:
            raise error


def _failing(work):
    try:
        work()
    except (DarwinLMError, KeyError) as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file on POSIX systems only")
def test_two_processes(tmp_path):
    found = in_processes(_everything, tmp_path)
    for rank, one in found.items():
        assert (one["rank"], one["size"], one["main"]) == (rank, 2, rank == 0)
        assert one["sum"] == [3.0]
        assert one["gathered"] == [{"from": 0}, {"from": 1}]
        assert one["broadcast"] == "of 0"
        assert one["mine"] == [[0, 2, 4], [1, 3]][rank]
        assert one["portion"] == [[0, 1], [2, 3, 4]][rank]
        assert one["sent"] == [2.0]
        assert one["met"] == ("NumericsError", "NaN")
        assert one["alone"] == ("NumericsError", "block 3: NaN")
        assert one["both"] == ("DataError", "of 0")
        assert one["main fails"] == ("MissingExtraError", f"x needs the package 'p': {install('e')}")
        assert one["mine"] == [number for number in range(5) if one["owners"][number] == rank]
    assert found[1]["reduced"] == [3.0]
    assert found[0]["met inside"] == ("ParallelError", "process 1 stopped: KeyError: 'k'")
    assert found[1]["met inside"] == ("KeyError", "'k'")
    assert found[0]["main breaks"][0] == "KeyError"
    assert found[1]["main breaks"] == ("ParallelError", "the first process stopped: KeyError: 'k'")


def _one_leaves(rank):
    """The other one's connection is lost only after there was one, which the first exchange makes sure of."""
    if rank == 1:
        parallel.gather(0)
        parallel.shutdown()
        return None
    return _failing(lambda: [parallel.gather(0) for _ in range(2)])


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file on POSIX systems only")
def test_one_that_has_ended_is_not_waited_for(tmp_path):
    kind, message = in_processes(_one_leaves, tmp_path)[0]
    assert kind == "ParallelError"
    assert message.startswith("the connection to another process is lost (")
    assert message.endswith("): read its messages, then rerun the same command; finished work is kept")


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ParallelError, match="not MASTER_ADDR, MASTER_PORT: start several processes with torchrun"):
        parallel.init_from_environment()
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "a port")
    with pytest.raises(ParallelError, match=r"can't connect to each other: .*'a port'.*; start them with torchrun"):
        parallel.init_from_environment()
    monkeypatch.setattr("torch.distributed.is_available", lambda: False)
    with pytest.raises(ParallelError, match=r"built without torch.distributed: run a single process"):
        parallel.init_from_environment()


def test_one_process_of_one_meets_nobody(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    parallel.init_from_environment()
    assert not torch.distributed.is_initialized()
