"""Models cut by hand, made once for each file."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tiny.cutting import PLANS, Kept, cut
from tests.tiny.models import FAMILIES, tiny_model


@pytest.fixture(params=FAMILIES, scope="module")
def dense(request: pytest.FixtureRequest) -> Any:
    """The tiny model of a family."""
    return tiny_model(request.param)


@pytest.fixture(params=PLANS, scope="module")
def plan(request: pytest.FixtureRequest) -> list[Kept]:
    """What stays of each of its blocks."""
    return PLANS[request.param]


@pytest.fixture(scope="module")
def pruned(dense: Any, plan: list[Kept]) -> Any:
    """The smaller model, which never ends a text early."""
    model = cut(dense, plan)
    model.generation_config.eos_token_id = None
    return model
