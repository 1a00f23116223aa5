"""Models cut by hand, and what a recovery starts from, made once for each file."""

from typing import Any

import pytest
from tests.tiny.checkpoint import tiny_text
from tests.tiny.cutting import Kept, cut, plan_for
from tests.tiny.models import FAMILIES, tiny_model


@pytest.fixture(params=FAMILIES, scope="module")
def dense(request: pytest.FixtureRequest) -> Any:
    """The tiny model of a family."""
    return tiny_model(request.param)


@pytest.fixture(params=["no attention first", "nothing first", "query heads", "experts"], scope="module")
def plan(request: pytest.FixtureRequest, dense: Any) -> list[Kept]:
    """What stays of each of its blocks."""
    return plan_for(dense.config.model_type, request.param)


@pytest.fixture(scope="module")
def pruned(dense: Any, plan: list[Kept]) -> Any:
    """The smaller model, which never ends a text early."""
    model = cut(dense, plan)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def inputs(finished_llama, tiny_llama, tmp_path_factory):
    """The smaller model, the dense one, and text for training."""
    folder = tmp_path_factory.mktemp("recovery")
    return finished_llama / "model", tiny_llama, tiny_text(folder / "text.txt", 400, seed=7)
