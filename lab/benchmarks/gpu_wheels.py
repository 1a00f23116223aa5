"""A folder of wheels, unpacked where Python finds them, for a machine that has PyTorch and transformers alone."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

NEEDED = ("pydantic", "rich", "typer", "scipy", "datasets", "jaxtyping")
"""Modules of the benchmark that neither PyTorch nor transformers needs."""


def unpack(wheels: Path, target: Path) -> list[str]:
    """Unpack the wheels of a folder that fit this Python, in place of earlier ones; returns their names.

    Raises ValueError if there is none.
    """
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename
    from packaging.version import Version

    fitting: dict[str, tuple[Version, Path]] = {}
    tags = frozenset(sys_tags())
    for path in sorted(wheels.glob("*.whl")):
        try:
            name, version, _, of_wheel = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        if tags & of_wheel:
            fitting[name] = max(fitting.get(name, (version, path)), (version, path))
    if not fitting:
        raise ValueError(f"{wheels} holds no wheel that fits this Python")
    shutil.rmtree(target, ignore_errors=True)
    for _, path in fitting.values():
        with zipfile.ZipFile(path) as archive:
            archive.extractall(target)
    return sorted(fitting)
