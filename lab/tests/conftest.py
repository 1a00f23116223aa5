"""Fixtures of the core's tests, and `command` for the commands of the lab."""

import pytest
from tests.conftest import finished_llama, gguf_bytes, make_run, model_copy, tiny_folder, tiny_llama, tiny_text_file  # noqa: F401 - fixtures
from tests.tiny.command import Command, command_runner

from lab.__main__ import main


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command of the lab in this process: command("compare", folder, "--keep", "50%")."""
    return command_runner(monkeypatch, capsys, main)
