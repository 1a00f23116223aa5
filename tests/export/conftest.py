"""llama.cpp in the tests' own process: files are compared here by the hundred, and processes are tested elsewhere."""

import tempfile
from pathlib import Path

import pytest

from darwinlm.engines import process, worker
from darwinlm.runtime.errors import EngineError


def _enter(self):
    from darwinlm.engines.llama_cpp import Engine as LlamaCpp

    assert self.engine == "llama.cpp"
    self._folder = tempfile.TemporaryDirectory()
    try:
        self._loaded = LlamaCpp(str(self.model), **self._options)
    except Exception as error:
        raise EngineError(str(error)) from error
    return self


def _exit(self, *_):
    del self._loaded
    self._folder.cleanup()


@pytest.fixture(autouse=True)
def engine_here(monkeypatch):
    """Engines load and answer in this process."""

    def quantise_file(source: Path, target: Path, quantisation: str, threads: int) -> None:
        from darwinlm.engines.llama_cpp import quantise

        quantise(str(source), str(target), quantisation, str(threads))

    monkeypatch.setattr(process.EngineProcess, "__enter__", _enter)
    monkeypatch.setattr(process.EngineProcess, "__exit__", _exit)
    monkeypatch.setattr(
        process.EngineProcess, "_ask", lambda self, name, **given: worker.answer(self._loaded, name, given, self.engine)
    )
    monkeypatch.setattr(process, "quantise_file", quantise_file)
