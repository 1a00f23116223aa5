"""The files that a file of Python imports from its own folder, found in its text: they are part of what it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path


def imported_files(path: Path) -> list[Path]:
    """Files of modules and packages beside a file that it imports, also through each other; sorted, without itself.

    Imports inside of functions count. Files that can't be parsed are leaves, since loading them tells what is wrong.
    """
    first = path.absolute()
    folder, found, waiting = first.parent, {first}, [first]
    while waiting:
        for imported in _imports(waiting.pop(), folder):
            if imported not in found:
                found.add(imported)
                waiting.append(imported)
    return sorted(found - {first})


def _imports(path: Path, folder: Path) -> Iterator[Path]:
    """Files in a folder that one file imports itself."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(folder, alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level > len(path.relative_to(folder).parts):
                continue  # it leaves the folder, which Python refuses
            base = folder if node.level == 0 else path.parents[node.level - 1]
            for alias in node.names:
                yield from _files(base, ".".join(filter(None, (node.module, alias.name))))


def _files(base: Path, name: str) -> Iterator[Path]:
    """Files of a module and of the packages that it is in, those that there are; the last part may be no module."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        stem = base.joinpath(*parts[:count])
        for file in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
            if file.is_file():
                yield file
