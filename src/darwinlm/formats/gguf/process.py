"""The parent's side of an engine: start it, send requests, and report crashes as errors.

Requests and answers are single lines of JSON; arrays are passed as .npy files in a temporary folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from darwinlm.formats.gguf.engine import ENGINES, Generated, require_engine
from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.runtime.errors import EngineError
from darwinlm.runtime.json_values import JsonObject


def child_environment() -> dict[str, str]:
    """Environment of a process of ours: neither it nor its children import or load code from the current folder.

    Such a process also starts in another folder, because libraries may look for plugins in the current one.
    """
    paths = [str(Path(path).absolute()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths)}


class EngineProcess:
    """An engine with a loaded model, to be used as a context manager.

    Options are those of `Engine`. `begin` is the first request, which gets them: `load`, or `quantise` with the options
    of `Engine.quantise`.

    Raises:
        MissingExtraError: The engine isn't installed.
        EngineError: The engine can't load the model.
    """

    def __init__(self, engine: str, model: Path, begin: str = "load", /, **options: object) -> None:
        require_engine(engine, f"running a model in {engine}")
        self.engine = engine
        self.model = model
        self._begin = begin
        self._options = options

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="darwinlm-engine-")
        self._log = Path(self._folder.name, "log").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "darwinlm.formats.gguf.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            cwd=self._folder.name,
            env=child_environment(),
        )
        try:
            self._ask(
                self._begin, engine=ENGINES[self.engine].target, model=str(self.model.absolute()), **self._options
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            try:
                stream.close()
            except BrokenPipeError:  # the engine has stopped reading
                continue
        self._folder.cleanup()

    def logits(self, tokens: Sequence[int], *, keep: int = 0) -> NDArray[np.float32]:
        """Logits [t, v] in float32 for a text of t tokens; `keep` gives those of the last tokens only."""
        return self._array("logits", tokens=list(tokens), keep=keep)

    def outputs(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """What a model that reads gives for texts, [i, c] in float32."""
        return self._array("outputs", texts=[list(text) for text in texts])

    def generate(self, tokens: Sequence[int], new_tokens: int) -> Generated:
        """The greedy continuation of a text, and the time it takes."""
        new, first, decode = self._ask("generate", tokens=list(tokens), new_tokens=new_tokens)["result"]
        return list(new), float(first), float(decode)

    def tokenize(self, text: str, *, written: bool = False) -> list[int]:
        """Tokens of a text from the engine's tokenizer; see `Engine.tokenize`."""
        return list(self._ask("tokenize", text=text, written=written)["result"])

    def version(self) -> str:
        """The engine's package and its version."""
        return ENGINES[self.engine].release

    def _array(self, request: str, **arguments: object) -> NDArray[np.float32]:
        """The answer to a request for an array."""
        path = Path(self._folder.name, f"{request}.npy")
        self._ask(request, path=str(path), **arguments)
        array: NDArray[np.float32] = np.load(path)
        return array

    def _ask(self, request: str, **arguments: object) -> JsonObject:
        """Send a request. Returns the answer, whose `result` is the request's. Raises EngineError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise EngineError(
                f"{self.engine} died (status {self._process.wait()}) on {self.model} at the request to {request}: "
                f"{self._last_words()}"
            )
        answer: JsonObject = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self.engine} can't {request} {self.model}: {answer['error']} {self._last_words()}")
        return answer

    def _last_words(self) -> str:
        self._log.flush()
        text = Path(self._log.name).read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
        return " | ".join(dict.fromkeys([*errors[-2:], *lines[-1:]]))[:600] or "it said nothing"


def quantise_file(source: Path, target: Path, quantisation: str, threads: int) -> None:
    """Quantise a GGUF file with llama.cpp's quantiser, in a separate process.

    Raises:
        MissingExtraError: The library isn't installed.
        EngineError: The quantiser refuses the file or dies.
    """
    path = str(target.absolute())
    with EngineProcess(LLAMA_CPP, source, "quantise", target=path, quantisation=quantisation, threads=threads):
        pass
