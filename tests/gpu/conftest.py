"""The tests of this folder need a PyTorch that takes devices written in Python."""

from collections.abc import Iterator

import pytest

from tests.gpu.device import Gpu, pretend_gpu, why_not


@pytest.fixture(autouse=True)
def able() -> None:
    """Skip where there can be no pretend device."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    """A pretend device that refuses what CUDA would."""
    with pretend_gpu() as device:
        yield device
