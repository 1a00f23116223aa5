"""How the package is laid out: names of modules, what declarations import, and what types and asserts may do."""

import ast
import functools
import json
from collections import Counter
from pathlib import Path

import pytest

import darwinlm
from tests.tiny.process import python

PACKAGE = Path(darwinlm.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

SHARED = {"__init__.py", "step.py"}
"""Names that several modules have."""
HEAVY = {"torch", "transformers", "tokenizers", "datasets", "numpy", "scipy", "gguf", "huggingface_hub"}
MOST_ANY = 40
"""Upper bound of the annotations and casts that say `Any`: to be lowered, not raised."""
PURE = {"all", "any", "dim", "isinstance", "issubclass", "keys", "len", "set", "sorted", "sum", "type", "values"}
"""Functions and methods that asserts may call: they change nothing."""


@functools.cache
def trees() -> dict[str, ast.Module]:
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_no_two_modules_share_a_name() -> None:
    count = Counter(path.name for path in MODULES)
    shared = {name for name, number in count.items() if number > 1} - SHARED
    assert {path.relative_to(PACKAGE).as_posix() for path in MODULES if path.name in shared} == set()


IMPORTED = """
import importlib, json, sys
heavy = {}
for name in json.loads(sys.argv[1]):
    before = set(sys.modules)
    importlib.import_module(name)
    heavy[name] = sorted({module.partition(".")[0] for module in set(sys.modules) - before})
print(json.dumps(heavy))
"""


def test_declarations_of_steps_and_the_recipe_import_nothing_heavy() -> None:
    """A recipe is read, and help is printed, without PyTorch."""
    steps = [f"darwinlm.steps.{path.parent.name}.step" for path in sorted(PACKAGE.glob("steps/*/step.py"))]
    assert len(steps) > 10
    names = [*steps, "darwinlm.recipe", "darwinlm.pipeline"]
    imported = json.loads(python("-c", IMPORTED, json.dumps(names)).stdout)
    assert {name: HEAVY & set(modules) for name, modules in imported.items() if HEAVY & set(modules)} == {}


def test_any_is_rare() -> None:
    nodes = (node for tree in trees().values() for node in ast.walk(tree))
    count = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    assert count <= MOST_ANY, "say what the type is"


@pytest.mark.parametrize("kind", [ast.NamedExpr, ast.Call, ast.Await, ast.Yield])
def test_asserts_change_nothing(kind: type[ast.AST]) -> None:
    """`python -O` leaves them out."""
    found = [
        f"{name}:{node.lineno} {ast.unparse(inner)}"
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        for inner in ast.walk(node.test)
        if isinstance(inner, kind) and not (isinstance(inner, ast.Call) and called(inner) in PURE)
    ]
    assert found == []


def called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
