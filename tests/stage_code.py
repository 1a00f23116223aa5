"""Which code each stage's result depends on, and whether it changed since the stage's version was last looked at.

A stage depends on all modules that its functions import, directly or not. `stage_versions.json` of the package holds
the version of each stage, which is part of its key, and a digest of each module's code. Comments, docstrings, layout
and imports don't count. When a test says that the code of stages changed, tell it what that means:

    python -m tests.stage_code same                    the results are the same: the digests are renewed
    python -m tests.stage_code changed refit search    those of refit and search aren't: their versions rise too
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import darwinlm

ROOT = Path(darwinlm.__file__).parent
FILE = ROOT / "stage_versions.json"
WITHOUT_EFFECT = frozenset(f"darwinlm.runtime.{name}" for name in ("errors", "console", "lock", "tables"))
"""They decide how a run speaks and stops, not what it computes."""


def roots() -> dict[str, frozenset[str]]:
    """Modules that hold the functions of each stage, by the stage's name; all baselines are `method`."""
    from darwinlm.comparison.compare import methods_graph, row_graph
    from darwinlm.comparison.entries import MethodRow
    from darwinlm.pipeline import PRUNE
    from darwinlm.runs.recovery import RECOVERY

    found = {"source": frozenset({"darwinlm.gguf.read"})}
    for graph in (PRUNE, RECOVERY, methods_graph(), row_graph(MethodRow("uniform"))):
        for stage in graph:
            if stage.work is not None:
                functions = filter(None, (stage.work, stage.result, stage.key))
                name = stage.name.partition("_")[0]
                found[name] = found.get(name, frozenset()) | {each.__module__ for each in functions}
    return found


def file_of(module: str) -> Path | None:
    """The file of a module or package; None if there is none."""
    place = ROOT.joinpath(*module.split(".")[1:])
    files = (place.with_suffix(".py"), place / "__init__.py") if place != ROOT else (ROOT / "__init__.py",)
    return next((path for path in files if path.is_file()), None)


@cache
def tree_of(module: str) -> ast.Module:
    path = file_of(module)
    assert path is not None, module
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(module: str) -> Iterator[str]:
    """Modules of the package that a module imports somewhere, with the packages that hold it."""
    parts = module.split(".")
    yield from (".".join(parts[:end]) for end in range(1, len(parts)))
    waiting: list[ast.AST] = [tree_of(module)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        yield from (name for name in names if name.partition(".")[0] == "darwinlm" and file_of(name) is not None)
        waiting += ast.iter_child_nodes(node)


@cache
def closure(start: frozenset[str]) -> frozenset[str]:
    """Modules that some modules depend on, with themselves."""
    found, waiting = set(start), list(start)
    while waiting:
        new = set(imported(waiting.pop())) - found
        found |= new
        waiting += new
    return frozenset(found - WITHOUT_EFFECT)


def code_of(module: str) -> str:
    """What a module says to the interpreter, without comments, docstrings, layout and imports, and its data files."""
    path = file_of(module)
    assert path is not None, module
    data = sorted(path.parent.rglob("*.yaml")) if path.name == "__init__.py" and path.parent != ROOT else []
    return repr(_plain(tree_of(module))) + "".join(each.read_text(encoding="utf-8") for each in data)


def _plain(node: Any) -> Any:
    """A syntax tree as tuples, without what is empty: versions of Python differ in that."""
    if isinstance(node, list):
        return tuple(_plain(part) for part in node if not _says_nothing(part))
    if not isinstance(node, ast.AST):
        return node
    fields = ((name, _plain(value)) for name, value in ast.iter_fields(node))
    return (type(node).__name__, *((name, value) for name, value in fields if value not in (None, ())))


def _says_nothing(node: Any) -> bool:
    """Whether a statement is an import or a docstring."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@cache
def digest_of(module: str) -> str:
    """Digest of a module's code."""
    return hashlib.blake2b(code_of(module).encode(), digest_size=6).hexdigest()


def digests() -> dict[str, str]:
    """Digest of the code of every module that a stage depends on."""
    return {each: digest_of(each) for each in sorted(set().union(*map(closure, roots().values())))}


def read() -> dict[str, dict[str, Any]]:
    """The content of the file."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def changed_stages() -> list[str]:
    """Stages that depend on a module whose code isn't the recorded one."""
    recorded, now = read()["code"], digests()
    return [name for name, start in roots().items() if any(recorded.get(each) != now[each] for each in closure(start))]


def main(arguments: list[str]) -> str:
    """Renew the file. Returns what was done, in words."""
    verdict, *names = arguments or [""]
    if verdict not in ("same", "changed") or bool(names) != (verdict == "changed"):
        return f"{__doc__}\nchanged now: {', '.join(changed_stages()) or 'none'}"
    unknown = set(names) - roots().keys()
    if unknown:
        return f"there is no stage {', '.join(sorted(unknown))}; the stages are {', '.join(roots())}"
    versions = read()["versions"]
    versions = {name: versions.get(name, 1) + (name in names) for name in roots()}
    FILE.write_text(json.dumps({"versions": versions, "code": digests()}, indent=1) + "\n", encoding="utf-8")
    return f"renewed; the version of {', '.join(names) or 'no stage'} rose"


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
