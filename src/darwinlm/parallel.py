"""Several processes of one run, as torchrun starts them; in a single process everything here does nothing.

All processes walk the same stages. The first one alone writes and talks; work that is shared is dealt out over the
processes, and its results come together by sums (`all_reduce`) or in the first process (`collect`). What can fail in
one process alone stands inside `agree`, so that all of them stop with the same message instead of waiting for ever.
What stands inside `main_first` is done as if there were no others, so anything may be called there.

PyTorch is imported on first use: the command line asks this file who may talk before it knows what to do.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from darwinlm import errors, meeting
from darwinlm.errors import DarwinLMError, ParallelError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(minutes=15)
"""Longest that a collective may take once all processes have come to it."""

Failure = tuple[str, str] | None

_meetings: meeting.Meetings | None = None
_alone = False


def rank() -> int:
    """Number of this process, 0 being the first."""
    if _initialized():
        import torch.distributed as dist

        return dist.get_rank()
    return int(os.environ.get("RANK", "0")) if expected() > 1 else 0


def size() -> int:
    """How many processes work together."""
    if not _together():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def is_main() -> bool:
    """Whether this process writes and talks."""
    return rank() == 0


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """How many processes of this run share the machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if _initialized() else 1


def gpu() -> int:
    """Number of this process's GPU among those that it sees: its own, where it sees a single one.

    Raises:
        ParallelError: There are more processes than GPUs.
    """
    import torch

    count = torch.cuda.device_count()
    if count > 1 and local_rank() >= count:
        raise ParallelError(
            f"this machine has {count} GPUs, but {os.environ.get('LOCAL_WORLD_SIZE', local_rank() + 1)} processes were "
            f"started on it: start one for each GPU, torchrun --nproc-per-node {count}"
        )
    return local_rank() if count > 1 else 0


def init_from_environment() -> None:
    """Meet the other processes that torchrun started; does nothing alone or when they have met before.

    gloo carries what lies in main memory, NCCL what lies on GPUs where there are any.

    Raises:
        ParallelError: The environment is torchrun's only in part, the other processes don't answer, or two of them
            have one GPU.
    """
    if _initialized() or expected() < 2:
        return
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise ParallelError("this machine's PyTorch is built without torch.distributed: run a single process")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ParallelError(f"WORLD_SIZE is set, but not {', '.join(missing)}: start several processes with torchrun")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(gpu())
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ParallelError(f"the processes can't meet: {error}; start them with torchrun") from error
    if torch.cuda.is_available():
        _check_gpus()


def _check_gpus() -> None:
    """Refuse two processes on one GPU: NCCL would wait for ever, or fail in words of its own."""
    import torch

    seen: dict[tuple[str, str], int] = {}
    name = str(getattr(torch.cuda.get_device_properties(gpu()), "uuid", rank()))
    for number, found in enumerate(gather((socket.gethostname(), name))):
        if seen.setdefault(found, number) != number:
            raise ParallelError(
                f"processes {seen[found]} and {number} have the same GPU of {found[0]}: start as many processes as it "
                "has GPUs, torchrun --nproc-per-node N"
            )


def shutdown() -> None:
    """Part from the other processes."""
    global _meetings  # noqa: PLW0603 - as the process group, it is the process's
    if _meetings is not None:
        _meetings.leave()
        _meetings = None
    if _initialized():
        import torch.distributed as dist

        dist.destroy_process_group()


def place() -> int:
    """Place of this process among those that work together: its rank, or 0 alone."""
    return rank() if _together() else 0


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, in place; returns it."""
    if _together():
        import torch.distributed as dist

        with _meeting("a sum"):
            dist.all_reduce(tensor)
    return tensor


def gather(value: T) -> list[T]:
    """Everybody's value, in the order of the processes, in every process. Values are pickled between processes."""
    if not _together():
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * size()
    with _meeting("everybody's values"):
        dist.all_gather_object(found, value)
    return found


def broadcast(value: T) -> T:
    """The first process's value, in every process. It is pickled between processes."""
    if not _together():
        return value
    import torch.distributed as dist

    box = [value]
    with _meeting("the first one's value"):
        dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait until all processes are here."""
    gather(None)


def mine(items: Sequence[T]) -> Sequence[T]:
    """This process's part of some work: every `size()`-th item."""
    return items[place() :: size()]


def collect(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of all processes in main memory of the first one, by name; the others get an empty mapping."""
    if not _together():
        return tensors
    import torch
    import torch.distributed as dist

    offered = gather([(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()])
    with _meeting("the tensors of all"):
        if not is_main():
            for tensor in tensors.values():
                dist.send(tensor.detach().cpu().contiguous(), dst=0)
            return {}
        found = dict(tensors)
        for source in range(1, size()):
            for name, shape, dtype in offered[source]:
                found[name] = torch.empty(shape, dtype=dtype)
                dist.recv(found[name], src=source)
        return found


@contextmanager
def agree() -> Iterator[None]:
    """Work in which processes don't talk to each other, and in which any of them may fail: then all of them do.

    Raises:
        DarwinLMError: Of the first process that raised one.
    """
    raised: DarwinLMError | None = None
    try:
        yield
    except DarwinLMError as error:
        raised = error
    failures = gather(_described(raised))
    first = next((place for place, failure in enumerate(failures) if failure is not None), None)
    if first is not None:
        raise raised if raised is not None and first == place() else _rebuilt(failures[first])


@contextmanager
def main_first() -> Iterator[None]:
    """Let the first process do this alone, then the others, who find what it has made.

    Inside, each process is alone: nothing is shared or gathered, so that work which may be shared elsewhere runs here
    too, whole, while the others wait.

    Raises:
        DarwinLMError: In all processes, when the first one raised it.
    """
    if not _together():
        yield
    elif is_main():
        try:
            with _by_itself():
                yield
        except BaseException as error:
            broadcast(_described(error))
            raise
        broadcast(None)
    else:
        failure: Failure = broadcast(None)
        if failure is not None:
            raise _rebuilt(failure)
        with _by_itself():
            yield


@contextmanager
def _by_itself() -> Iterator[None]:
    global _alone  # noqa: PLW0603 - as the process group, it is the process's
    _alone = True
    try:
        yield
    finally:
        _alone = False


@contextmanager
def _meeting(what: str) -> Iterator[None]:
    """Wait until all processes are here, then do something together. Raises ParallelError when one of them is lost."""
    global _meetings  # noqa: PLW0603 - as the process group, it is the process's
    if _meetings is None:
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

        store = PrefixStore("darwinlm", _get_default_store())
        _meetings = meeting.Meetings(store, rank(), dist.get_world_size())
    _meetings.wait(what)
    try:
        yield
    except RuntimeError as error:
        raise meeting.lost(error) from error


def _described(error: BaseException | None) -> Failure:
    if error is None:
        return None
    if isinstance(error, DarwinLMError):
        return type(error).__name__, str(error)
    return "ParallelError", f"the first process stopped: {type(error).__name__}: {error}"


def _rebuilt(failure: Failure) -> DarwinLMError:
    assert failure is not None
    kind, message = failure
    cls = getattr(errors, kind, DarwinLMError)
    error: DarwinLMError = cls.__new__(cls)
    Exception.__init__(error, message)
    return error


def expected() -> int:
    """How many processes torchrun started, whether they have met or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _initialized() -> bool:
    dist = sys.modules.get("torch.distributed")  # who hasn't imported it hasn't met anybody
    return dist is not None and bool(dist.is_available() and dist.is_initialized())


def _together() -> bool:
    return _initialized() and not _alone
