"""The pretend device itself: it computes what a CPU does, refuses what CUDA would, and counts."""

import gc
import inspect
from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME
from tests.gpu.tally import HOT, KNOWN_WAITS, MixedDevicesError

CARD, OTHER = torch.device(NAME, 0), torch.device(NAME, 1)
REFUSED: dict[type[Exception], tuple[str, dict[str, Callable[[torch.Tensor], object]]]] = {
    MixedDevicesError: (
        "same device",
        {
            "matrix product": lambda there: there @ torch.ones(3, 3),
            "sum with a matrix in main memory": lambda there: there + torch.ones(3, 3),
            "joined": lambda there: torch.cat([there, torch.ones(3, 3)]),
            "rows picked by places in main memory": lambda there: there.index_select(0, torch.arange(2)),
            "main memory indexed from the device": lambda there: torch.ones(3, 3)[there[0].long()],
            "numpy": lambda there: there.detach().numpy(),
            "a generator of main memory": lambda there: torch.rand(3, device=there.device, generator=torch.Generator()),
            "a 0-dim factor of a product": lambda there: torch.addmm(there, there, torch.ones(3, 3)),
        },
    ),
    torch.AcceleratorError: (
        "invalid device ordinal",
        {
            "tensors elsewhere": lambda _: torch.ones(2, device=OTHER),
            "set_device": lambda _: torch.cuda.set_device(OTHER),
            "streams": lambda _: torch.cuda.Stream(OTHER),
            "memory": lambda _: torch.cuda.memory_allocated(OTHER),
        },
    ),
    NotImplementedError: (
        "not implemented for",
        {
            "products of integers": lambda there: there.long() @ there.long(),
            "numbers without a sign": lambda there: there.to(torch.uint16) * 2,
        },
    ),
    ValueError: (
        r"Expected a torch\.device with a specified index",
        {"no index": lambda _: torch.cuda.set_device(torch.device(NAME))},
    ),
}


@pytest.mark.parametrize(("error", "case"), [(error, case) for error, (_, cases) in REFUSED.items() for case in cases])
def test_what_cuda_refuses_is_refused(gpu, error, case):
    said, cases = REFUSED[error]
    with pytest.raises(error, match=said):
        cases[case](torch.eye(3, device=CARD))
    assert sum(gpu.tally.mixes.values()) == (error is MixedDevicesError)


ALLOWED = {
    "a number in main memory": lambda there: there * torch.tensor(2.0),
    "places in main memory": lambda there: there[torch.arange(2)],
    "a number to fill with": lambda there: there.masked_fill(there > 0, torch.tensor(0.0)),
    "a copy": lambda there: torch.empty(4, 4).copy_(there),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_cuda_takes_is_taken(gpu, case):
    ALLOWED[case](torch.ones(4, 4, device=NAME))
    assert not gpu.tally.mixes


def test_generators_belong_to_a_device(gpu):
    def drawn() -> torch.Tensor:
        generator = torch.Generator(NAME).manual_seed(3)
        assert generator.device.type == NAME
        return torch.randn(4, device=NAME, generator=generator)

    assert torch.equal(drawn().cpu(), drawn().cpu())
    assert torch.equal(drawn().cpu(), torch.randn(4, generator=torch.Generator().manual_seed(3)))


WAITING = {
    "a number": lambda there: float(there.sum()),
    "a truth": lambda there: bool((there > 0).all()),
    "places that hold": lambda there: there.nonzero(),
    "a mask": lambda there: there[there > 0],
    "a copy down": lambda there: there.cpu(),
    "a list": lambda there: there.tolist(),
}


@pytest.mark.parametrize("case", WAITING)
def test_waits_are_counted(gpu, case):
    there = torch.ones(4, 4, device=NAME)
    assert not gpu.tally.waits
    WAITING[case](there)
    assert sum(gpu.tally.waits.values()) == 1


def test_kernels_and_uploads_are_counted(gpu):
    there = torch.ones(4, 4).to(NAME)
    assert sum(gpu.tally.uploads.values()) == 1
    gpu.restart()
    _ = there.view(2, 8).T, torch.empty(3, device=NAME)
    assert not sum(gpu.tally.kernels.values())
    (there @ there).double().cholesky_inverse()
    assert sum(gpu.tally.kernels.values()) == 3


@pytest.mark.parametrize(("module", "function"), sorted(HOT | KNOWN_WAITS, key=str))
def test_loops_in_which_the_host_must_not_wait_are_in_the_code(module: ModuleType, function: str) -> None:
    assert f"def {function}(" in inspect.getsource(module)


def test_memory_is_counted_while_it_is_used(gpu):
    whole = torch.zeros(1000, device=NAME)
    part = whole[:10]
    assert gpu.allocated == 4000
    del whole
    gc.collect()
    assert gpu.allocated == 4000, "the part holds all of it"
    _ = part + 1
    del part, _
    gc.collect()
    assert gpu.allocated == 0
    assert gpu.peak == 4040
    assert gpu.restart()[1] == 4040
    assert gpu.peak == 0


def test_a_moved_module_stays_tied(gpu):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.to(NAME)
    assert model[1].weight is model[0].weight
    assert model[0].weight.device.type == NAME


def test_a_device_without_float64_refuses_it():
    with pretend_gpu(float64=False):
        there = torch.ones(2, device=NAME)
        for ask in (
            there.double,
            lambda: there.sum(dtype=torch.float64),
            lambda: there.to("cpu", torch.float64),
            lambda: torch.zeros(2, dtype=torch.float64, device=NAME),
            lambda: torch.ones(2, dtype=torch.float64).to(NAME),
        ):
            with pytest.raises(TypeError, match="doesn't support float64"):
                ask()
        assert there.cpu().double().sum() == 2


def test_libraries_see_no_device_once_it_is_gone():
    """They would empty its cache, for example, in another test of this process."""
    with pretend_gpu():
        assert torch.accelerator.is_available()
    assert not torch.accelerator.is_available()
