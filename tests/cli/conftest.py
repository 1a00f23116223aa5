"""`darwinlm prune` with tiny settings, and models that may be damaged."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.formats.gguf.conftest import engine_here  # noqa: F401 - llama.cpp in the tests' own process
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import Command, Ended, sets


@pytest.fixture
def prune(command: Command, tiny_llama: Path, tiny_text_file: Path, tmp_path) -> Callable[..., Ended]:
    """Prune with tiny settings into tmp_path/out: prune("--keep", "40%", model=..., text=..., out=...)."""

    def run(*more: object, model: object = tiny_llama, text: object = tiny_text_file, out: object = None) -> Ended:
        where = out if out is not None else tmp_path / "out"
        return command("prune", model, "--out", where, "--text", text, *sets(SETTINGS), *more)

    return run
