"""Checkpoints and artifacts made bad, and what must not be left behind then."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a file, or of a folder's only one; other links to the file keep the old ones."""
    path = path / "model.safetensors" if path.is_dir() else path
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def write_index(folder: Path, shards: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def assert_nothing_half_written(out: Path) -> None:
    """No model, no report, no temporary file; a stage is finished or holds no result."""
    assert not (out / "model").exists()
    assert not (out / "summary.json").exists()
    assert not (out / "report.html").exists()
    assert [path for path in out.rglob("*") if path.name.endswith((".tmp", ".partial"))] == []
    for stage in (out / "stages").glob("*"):
        if not (stage / "manifest.json").exists():
            assert {path.name for path in stage.iterdir()} <= {"key.json", "reads.json"}
