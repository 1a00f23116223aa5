"""The pretend GPU."""

from collections.abc import Iterator

import pytest

from tests.gpu.device import Gpu, pretend_gpu


@pytest.fixture
def gpu() -> Iterator[Gpu]:
    """A pretend device that refuses what CUDA would."""
    with pretend_gpu() as device:
        yield device
