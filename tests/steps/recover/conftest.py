"""What a recovery starts from."""

import pytest
from tests.tiny.checkpoint import tiny_text


@pytest.fixture(scope="module")
def inputs(finished_llama, tiny_llama, tmp_path_factory):
    """The smaller model, the dense one, and text for training."""
    folder = tmp_path_factory.mktemp("recovery")
    return finished_llama / "model", tiny_llama, tiny_text(folder / "text.txt", 400, seed=7)
