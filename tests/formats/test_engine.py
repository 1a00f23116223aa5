"""An engine of a user's own: a class in a file, and an entry of `ENGINES`."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from darwinlm.formats.gguf.engine import ENGINES, EngineEntry
from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.runtime.errors import EngineError, MissingExtraError

MODULE = """
from pathlib import Path

import numpy as np

from darwinlm.formats.gguf.engine import Engine


class Otter(Engine):
    def __init__(self, model, *, threads=1, context=2048, exact=False):
        self.text = Path(model).read_text()

    def logits(self, tokens, keep=0):
        return np.eye(4, dtype=np.float32)[tokens[-keep:]]

    def generate(self, tokens, new_tokens):
        return [tokens[-1]] * new_tokens, 0.5, 0.25

    def tokenize(self, text, *, written=False):
        return [self.text.index(letter) for letter in text]
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A model file of the engine `otter`."""
    (tmp_path / "otter_engine.py").write_text(MODULE)
    (tmp_path / "model").write_text("abcd")
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), known))))
    monkeypatch.setitem(ENGINES, "otter", EngineEntry("otter_engine:Otter", "json", "gguf"))
    return tmp_path / "model"


def test_a_new_engine_is_a_class_and_an_entry(model: Path) -> None:
    with EngineProcess("otter", model) as engine:
        assert engine.tokenize("dab") == [3, 0, 1]
        assert engine.logits([1, 2, 3], keep=2).argmax(-1).tolist() == [2, 3]
        assert engine.generate([1, 2], 3) == ([2, 2, 2], 0.5, 0.25)


def test_what_it_cannot_do_is_an_error(model: Path) -> None:
    with pytest.raises(EngineError, match=r"otter can't quantise .*Otter doesn't quantise files"):
        EngineProcess("otter", model, "quantise", target="x", quantisation="Q8_0", threads=1).__enter__()
    with EngineProcess("otter", model) as engine, pytest.raises(EngineError, match="an engine answers logits, gen"):
        engine._ask("__init__", model=json.dumps("x"))


def test_an_engine_that_is_not_installed_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "otter", EngineEntry("otter_engine:Otter", "no_such_package", "gguf"))
    with pytest.raises(MissingExtraError, match="no_such_package"):
        EngineProcess("otter", model)
