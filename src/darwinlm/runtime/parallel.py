"""Several processes of one run, started by torchrun; in a single process all functions do nothing.

All processes run the same stages. Only the first one writes messages, and files but those of a block, which its owner
writes. Shared work is divided over processes; its results are combined by sums in all of them (`all_reduce`) or in one
(`reduce`), or sent to all (`send`). Work that can fail in a single process is done inside `agree`, so that all
processes stop with the same message; before they communicate there, they `meet`. Inside `main_first` a process works
as if it were alone. A process that fails elsewhere ends the others (`runtime/failures.py`).

PyTorch is imported on first use, because the command line uses this module before it parses the command.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from darwinlm.runtime.errors import DarwinLMError, ParallelError, first_line
from darwinlm.runtime.failures import Failures
from darwinlm.runtime.interruptible import interruptible

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")
P = ParamSpec("P")
E = TypeVar("E", bound=BaseException)
Forms = dict[str, "tuple[torch.Size, torch.dtype]"]
"""Shapes and types of named tensors."""

PATIENCE = timedelta(days=1)
"""Time limit of a collective in main memory: the others may wait for hours while one works."""
GLOO = "gloo/transport"
"""What stands in an error of gloo about a connection: the place in its code."""
GPU_PATIENCE = timedelta(minutes=30)
"""Time limit of a collective on GPUs, in which all processes do the same, and of their first meeting."""

_alone = False
_failures: Failures | None = None


def rank() -> int:
    """Index of this process; 0 is the first."""
    if _initialized():
        import torch.distributed as dist

        return dist.get_rank()
    return _number("RANK", 0) if expected() > 1 else 0


def size() -> int:
    """Number of processes of this run."""
    if not _together():
        return 1
    import torch.distributed as dist

    return dist.get_world_size()


def is_main() -> bool:
    """Whether this process writes files and messages."""
    return rank() == 0


def local_size() -> int:
    """Number of processes of this run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if _initialized() else 1


def gpu() -> int:
    """Index of this process's GPU among the visible ones. Raises ParallelError if there are more processes."""
    import torch

    count, index = torch.cuda.device_count(), _number("LOCAL_RANK", 0)
    if count > 1 and index >= count:
        raise ParallelError(
            f"this machine has {count} GPUs, but {os.environ.get('LOCAL_WORLD_SIZE', index + 1)} processes were "
            f"started on it: start one for each GPU, torchrun --nproc-per-node {count}"
        )
    return index if count > 1 else 0


def init_from_environment() -> None:
    """Connect to the other processes of torchrun; does nothing in a single process or on repeated calls.

    gloo transfers tensors in main memory, NCCL those on GPUs. Raises ParallelError.
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
    distributed: Any = dist  # whose stubs lack some of its names
    on_gpus = torch.cuda.is_available()

    def connect() -> Any:
        store, rank, size = next(distributed.rendezvous("env://", timeout=GPU_PATIENCE))
        store.set_timeout(PATIENCE)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpus else "gloo",
            store=distributed.PrefixStore("collectives", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
        return store

    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store = interruptible(
            connect,
            f"process {rank()} of {expected()} is still waiting for the others at {where!r}: if one of them has ended, "
            "stop this one with Ctrl-C",
        )
    except (RuntimeError, ValueError) as error:
        raise ParallelError(f"the processes can't connect to each other: {error}; start them with torchrun") from error
    global _failures  # noqa: PLW0603 - as the process group, it is the process's
    _failures = Failures(distributed.PrefixStore("failures", store), hosts=is_main(), n_others=size() - 1)
    if on_gpus:
        distributed.group.WORLD._get_backend(torch.device("cuda"))._set_default_timeout(GPU_PATIENCE)
        with agree():
            torch.cuda.set_device(gpu())


def shutdown() -> None:
    """Disconnect from the other processes after success."""
    global _failures  # noqa: PLW0603 - as the process group, it is the process's
    if _failures is not None:
        _failures.await_end()
    if _initialized():
        import torch.distributed as dist

        dist.destroy_process_group()
    if _failures is not None:
        _failures.part()
        _failures = None


def leave(status: int) -> None:
    """End this process at once after a failure, if it is one of several; those that wait for it end too."""
    if _failures is not None:
        _failures.exit(status)


def connected() -> bool:
    """Whether this process is connected to others."""
    return _failures is not None


def tells(error: BaseException) -> bool:
    """Whether this process prints the error that ends it: the first one that fails does.

    Before they are connected, the main process does, and each one that is interrupted.
    """
    if _failures is None:
        return is_main() or isinstance(error, KeyboardInterrupt)
    return _failures.is_first(of_another=isinstance(error, DarwinLMError) and error.of_another)


def place() -> int:
    """Index of this process among those that work together: its rank, or 0 if it works alone."""
    return rank() if _together() else 0


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, in place; returns it."""
    if _together():
        import torch.distributed as dist

        with _collective():
            dist.all_reduce(tensor)
    return tensor


def reduce(tensor: Tensor, to: int) -> Tensor:
    """Sum of a tensor over all processes, in place in one of them; returns it. The others' numbers are used up."""
    if _together():
        import torch.distributed as dist

        with _collective():
            dist.reduce(tensor, dst=to)
    return tensor


def gather(value: T) -> list[T]:
    """The values of all processes in order, in every process. Values are pickled between processes."""
    if not _together():
        return [value]
    import torch.distributed as dist

    values = [value] * size()
    with _collective():
        dist.all_gather_object(values, value)
    return values


def send(tensor: Tensor, source: int) -> Tensor:
    """A tensor of one process, in place in the others' tensors of the same shape and type; returns it."""
    if _together():
        import torch.distributed as dist

        with _collective():
            dist.broadcast(tensor, src=source)
    return tensor


def forms_of(tensors: Mapping[str, Tensor]) -> Forms:
    """Shapes and types of tensors, which other processes need before these are sent to them."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def send_named(tensors: Mapping[str, Tensor], forms: Forms, source: int, device: torch.device) -> dict[str, Tensor]:
    """Tensors of one process by their names, on the device of each process.

    `forms` are those of the source's `tensors`; the others' may lack some.
    """
    import torch

    sent = {}
    for name, (shape, dtype) in forms.items():
        here = tensors[name] if name in tensors else torch.empty(shape, dtype=dtype, device=device)
        sent[name] = send(here.contiguous(), source)
    return sent


def meet(value: T) -> list[T]:
    """The values of all processes in order, inside `agree`: another one's failure there is raised here.

    Processes that work together inside `agree` meet before they communicate, since one that fails leaves it.
    """
    values: list[T | DarwinLMError] = gather(value)
    for found in values:
        if isinstance(found, DarwinLMError):
            raise _agreed(_of_another(found))
    return cast("list[T]", values)


def broadcast(value: T) -> T:
    """The first process's value, in every process. It is pickled between processes."""
    if not _together():
        return value
    import torch.distributed as dist

    box = [value]
    with _collective():
        dist.broadcast_object_list(box, src=0)
    return box[0]


def mine(items: Sequence[T]) -> Sequence[T]:
    """This process's share of some work: every `size()`-th item."""
    return items[place() :: size()]


def owner(number: int) -> int:
    """The process that `mine` gives the item of this number to."""
    return number % size()


def portion(items: Sequence[T]) -> Sequence[T]:
    """This process's share of work whose neighbours have most in common: consecutive items."""
    return items[len(items) * place() // size() : len(items) * (place() + 1) // size()]


@contextmanager
def agree() -> Iterator[None]:
    """Context for work without communication but `meet`; if it fails in any process, the first error is raised in all.

    A process that gets another one's error raises it as it is if it is a DarwinLMError, else as a ParallelError.
    """
    try:
        yield
    except Exception as error:
        if _is_agreed(error):  # all have it from `meet`, or from an inner `agree`
            raise
        failures = gather(_passed_on(error))
        failed = next(number for number, failure in enumerate(failures) if isinstance(failure, DarwinLMError))
        if failed == place():
            _agreed(error)
            raise
        raise _agreed(_of_another(failures[failed])) from error
    meet(None)


def in_main(work: Callable[P, object], *arguments: P.args, **keywords: P.kwargs) -> None:
    """Call a function in the first process alone; a DarwinLMError of it is raised in all."""
    with agree():
        if is_main():
            work(*arguments, **keywords)


def decide(work: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T:
    """What a function returns in the first process, in every process; a DarwinLMError of it is raised in all.

    For work that may end differently in each process, such as a choice between numbers that processors round.
    """
    if not _together():
        return work(*arguments, **keywords)
    results: list[T] = []
    in_main(lambda: results.append(work(*arguments, **keywords)))
    return broadcast(results)[0]


@contextmanager
def main_first() -> Iterator[None]:
    """Let the first process run the body alone, then the others, which reuse its results.

    Inside, each process works alone: nothing is shared or gathered, so that functions which share work elsewhere do all
    of it here while the others wait. A DarwinLMError of the first process is raised in all of them.
    """
    if not _together():
        yield
    elif is_main():
        try:
            with _by_itself():
                yield
        except BaseException as error:
            broadcast(_passed_on(error))
            raise
        broadcast(None)
    else:
        failure: DarwinLMError | None = broadcast(None)
        if failure is not None:
            raise _of_another(failure)
        with _by_itself():
            yield


def _passed_on(error: BaseException) -> DarwinLMError:
    """What the other processes raise for an error of this one; others than ours may not survive pickling."""
    if isinstance(error, DarwinLMError):
        return error
    process = "the first process" if is_main() else f"process {rank()}"
    return ParallelError(f"{process} stopped: {type(error).__name__}: {error}")


def _agreed(error: E) -> E:
    """Note that all processes raise an error."""
    error.__dict__["agreed"] = True
    return error


def _is_agreed(error: BaseException) -> bool:
    return "agreed" in error.__dict__


def _of_another(error: DarwinLMError) -> DarwinLMError:
    error.of_another = True
    return error


@contextmanager
def _by_itself() -> Iterator[None]:
    global _alone  # noqa: PLW0603 - as the process group, it is the process's
    _alone = True
    try:
        yield
    finally:
        _alone = False


@contextmanager
def _collective() -> Iterator[None]:
    """Turn the failure of a collective, because another process has ended or hangs, into a ParallelError."""
    try:
        yield
    except RuntimeError as error:
        raise _lost(error) from error


@contextmanager
def communicating() -> Iterator[None]:
    """Context for work in which PyTorch itself communicates, such as a backward pass with sharded weights.

    Its failure because another process has ended becomes a ParallelError; other errors are raised as they are.
    """
    try:
        yield
    except RuntimeError as error:
        dist = sys.modules.get("torch.distributed")
        if dist is None or not (isinstance(error, dist.DistError) or GLOO in str(error)):
            raise
        raise _lost(error) from error


def _lost(error: RuntimeError) -> DarwinLMError:
    return _of_another(
        ParallelError(
            f"the connection to another process is lost ({first_line(error)[:200]}): read its messages, then rerun "
            "the same command; finished work is kept"
        )
    )


def expected() -> int:
    """Number of processes that torchrun started, connected or not."""
    return _number("WORLD_SIZE", 1)


def _number(name: str, otherwise: int) -> int:
    """A variable of torchrun. Raises ParallelError if it is no number."""
    value = os.environ.get(name, str(otherwise))
    if not value.isdecimal():
        raise ParallelError(f"{name} is {value!r}, which is no number: unset it, or start the processes with torchrun")
    return int(value)


def _initialized() -> bool:
    dist = sys.modules.get("torch.distributed")  # not imported, so not connected
    return dist is not None and bool(dist.is_available() and dist.is_initialized())


def _together() -> bool:
    return _initialized() and not _alone
