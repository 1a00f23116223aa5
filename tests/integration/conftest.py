"""Models whose layers differ, and what a recovery starts from, made once for each file."""

from typing import Any

import pytest
from tests.tiny.checkpoint import tiny_text
from tests.tiny.cutting import cases, cut


@pytest.fixture(
    params=[
        *cases("no attention first", "query heads", "experts"),
        ("llama", "nothing first"),
        ("gemma4_text", "nothing first"),
    ],
    scope="module",
    ids=" ".join,
)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A family and a plan."""
    return request.param


@pytest.fixture(scope="module")
def pruned(case: tuple[str, str]) -> Any:
    """The smaller model, which never ends a text early."""
    model = cut(*case)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def inputs(finished_llama, tiny_llama, tmp_path_factory):
    """The smaller model, the dense one, and text for training."""
    folder = tmp_path_factory.mktemp("recovery")
    return finished_llama / "model", tiny_llama, tiny_text(folder / "text.txt", 400, seed=7)
