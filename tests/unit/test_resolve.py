"""Finding a model: what is missing is said before anything is read."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from darwinlm.errors import MissingExtraError, install
from darwinlm.families.resolve import resolve_model


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_a_gguf_file_needs_its_extra(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    message = f"reading model.gguf needs the package '{package}': {install('gguf')}"
    with pytest.raises(MissingExtraError, match=re.escape(message)):
        resolve_model(str(model), tmp_path / "source")
    assert not (tmp_path / "source").exists()
