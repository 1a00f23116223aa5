"""llama.cpp in the tests' own process: files are compared here by the hundred, and processes are tested elsewhere."""

import tempfile

import pytest

from darwinlm.formats.gguf import process, worker
from darwinlm.formats.gguf.engine import ENGINES
from darwinlm.runtime.errors import EngineError


def _enter(self):
    try:
        target = ENGINES[self.engine].target
        self._loaded = worker.begin(self._begin, target, {"model": str(self.model), **self._options})
    except Exception as error:
        raise EngineError(str(error)) from error
    self._folder = tempfile.TemporaryDirectory()
    return self


def _exit(self, *_):
    del self._loaded
    self._folder.cleanup()


@pytest.fixture(autouse=True)
def engine_here(monkeypatch):
    """Engines load and answer in this process."""

    monkeypatch.setattr(process.EngineProcess, "__enter__", _enter)
    monkeypatch.setattr(process.EngineProcess, "__exit__", _exit)
    monkeypatch.setattr(
        process.EngineProcess,
        "_ask",
        lambda self, name, **arguments: {"result": worker.answer(self._loaded, name, arguments)},
    )
