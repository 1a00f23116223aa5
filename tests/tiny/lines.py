"""Which lines of the package run under test, in all processes together, for a report by coverage.py.

Before Python 3.12 coverage.py traces all Python that runs, also that of transformers, which takes half of the
tests' processor time again. Here every statement of the package notes its line itself, in a file that the tests'
processes and their forks have in memory together. `make test` sets `COVERED_LINES=report`; the first process puts the
file's name there for those that it starts.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import mmap
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from io import StringIO
from pathlib import Path
from types import CodeType, ModuleType

from jaxtyping import jaxtyped

from tests.tiny.shapes import FORMULAS, checked

SWITCH, REPORT = "COVERED_LINES", "report"
RAN, CHECKED = "__ran__", "__checked__"
"""Names in the instrumented code: the shared bytes, and the decorator of formulas."""
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
COMPILED = "modeling_darwinlm.py"
"""A file whose lines aren't noted: torch.compile traces it, and can't trace the notes."""


class Lines:
    """One byte for each line of some files, shared by all processes that open them with the same `store`.

    Args:
        files: The files, in an order that is the same everywhere.
        store: File of the bytes; it is made if it is empty.
    """

    def __init__(self, files: Sequence[Path], store: Path) -> None:
        self.starts: dict[str, int] = {}
        total = 1
        for path in files:
            self.starts[str(path)] = total
            total += path.read_bytes().count(b"\n") + 1
        with store.open("r+b") as file:
            file.truncate(total)
            self.ran = mmap.mmap(file.fileno(), total)

    def compiled(self, source: bytes, path: str, *, check: bool = False) -> CodeType:
        """Code of a file whose statements note that they ran; formulas check their arguments if asked for."""
        tree = ast.parse(source, path)
        if check:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    node.decorator_list.insert(0, ast.copy_location(ast.Name(CHECKED, ast.Load()), node))
                elif isinstance(node, ast.FunctionDef):
                    node.decorator_list.append(ast.copy_location(ast.Name(CHECKED, ast.Load()), node))
        self._instrument(tree, self.starts[path])
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def executed(self) -> dict[str, list[int]]:
        """Numbers of the lines that ran, from 1, by file."""
        found: dict[str, list[int]] = {}
        ends = [*self.starts.values(), len(self.ran)][1:]
        for (path, start), end in zip(self.starts.items(), ends, strict=True):
            found[path] = [at - start + 1 for at in range(start, end) if self.ran[at]]
        return found

    def _instrument(self, node: ast.AST, start: int) -> None:
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, name, None)
            if not isinstance(inner, list):  # none, or the expression of a lambda
                continue
            for each in inner:
                self._instrument(each, start)
            if name in ("handlers", "cases"):  # those before the one that is taken were compared, too
                at = [start + getattr(each, "pattern", each).lineno - 1 for each in inner]
                for number, each in enumerate(inner):
                    each.body[:0] = [_note(each.body[0], line) for line in at[: number + 1]]
            else:
                inner[:] = _noted(inner, start, documented=isinstance(node, DOCUMENTED))


def _noted(body: list[ast.stmt], start: int, *, documented: bool) -> Iterator[ast.stmt]:
    """Statements with notes before them. Docstrings and imports from the future stay first."""
    for number, node in enumerate(body):
        if documented and number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node
            continue
        decorators: list[ast.expr] = getattr(node, "decorator_list", [])
        lines = {node.lineno, *(decorator.lineno for decorator in decorators)}
        notes = [_note(node, start + line - 1) for line in sorted(lines)]
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        yield from (node, *notes) if future else (*notes, node)


def _note(node: ast.stmt, at: int) -> ast.stmt:
    """The statement `__ran__[at] = 1`, where another one is."""
    place = ast.Subscript(ast.Name(RAN, ast.Load()), ast.Constant(at), ast.Store())
    return ast.copy_location(ast.Assign([place], ast.Constant(1)), node)


class _Loader(SourceFileLoader):
    lines: Lines

    def get_code(self, fullname: str) -> CodeType:
        """The code, which is never cached in a file."""
        return self.lines.compiled(self.get_data(self.path), self.path, check=fullname in FORMULAS)


class _Finder(MetaPathFinder):
    def __init__(self, package: str, lines: Lines) -> None:
        self.package, self.lines = package, lines

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin not in self.lines.starts:
            return spec
        spec.loader = _Loader(fullname, spec.origin)
        spec.loader.lines = self.lines
        return spec


def start() -> Lines | None:
    """Note what runs from now on, if the environment asks for it; the package hasn't been imported yet."""
    if SWITCH not in os.environ:
        return None
    if os.environ[SWITCH] == REPORT:
        descriptor, os.environ[SWITCH] = tempfile.mkstemp(prefix="covered-lines-")
        os.close(descriptor)
    found = importlib.util.find_spec("darwinlm")
    assert found is not None
    assert found.origin is not None
    assert "darwinlm" not in sys.modules, "its lines would be missing"
    files = sorted(path for path in Path(found.origin).parent.rglob("*.py") if path.name != COMPILED)
    lines = Lines(files, Path(os.environ[SWITCH]))
    setattr(builtins, RAN, lines.ran)
    setattr(builtins, CHECKED, jaxtyped(typechecker=checked))
    sys.meta_path.insert(0, _Finder("darwinlm", lines))
    return lines


def report(lines: Lines) -> str:
    """A table of the lines that no process ran, by file. Removes what the processes shared."""
    import coverage

    Path(os.environ[SWITCH]).unlink()
    measured = coverage.Coverage(data_file=None)
    data = measured.get_data()
    data.add_lines(lines.executed())
    data.touch_files(lines.starts)
    table = StringIO()
    measured.report(file=table)
    return table.getvalue()


LINES = start()
