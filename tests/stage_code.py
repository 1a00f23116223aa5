"""Which code each stage's result depends on, and whether it changed since the stage's version was last looked at.

`stage_versions.json` of the package has a line for each stage: its version, which is part of the stage's key, the
modules that compute its result, and a digest of their code. Comments, docstrings, layout and imports don't count. When
a test says that a stage's code changed, tell it what that means:

    python -m tests.stage_code same refit search     the results are the same: only the digest is renewed
    python -m tests.stage_code changed refit         they aren't: the version rises, and old results are redone
    python -m tests.stage_code same                  all stages that changed
"""

import ast
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import darwinlm

ROOT = Path(darwinlm.__file__).parent
FILE = ROOT / "stage_versions.json"


def read() -> dict[str, dict[str, Any]]:
    """The lines of the file."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def files_of(modules: list[str]) -> list[Path]:
    """The Python and data files of modules and packages, `stages.refit` or `surgery`."""
    found: set[Path] = set()
    for module in modules:
        place = ROOT.joinpath(*module.split("."))
        here = list(place.rglob("*")) if place.is_dir() else [place.with_suffix(".py")]
        here = [path for path in here if path.suffix in (".py", ".yaml")]
        assert here, f"there is no module {module}: mend {FILE.name}"
        found |= set(here)
    return sorted(found)


def code_of(path: Path) -> str:
    """What a file says to the interpreter: without comments, docstrings, layout and imports."""
    text = path.read_text(encoding="utf-8")
    return repr(_plain(ast.parse(text))) if path.suffix == ".py" else text


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


def digest_of(modules: list[str]) -> str:
    """Digest of the code of modules; where a file lies doesn't count."""
    parts = sorted(hashlib.blake2b(code_of(path).encode(), digest_size=16).hexdigest() for path in files_of(modules))
    return hashlib.blake2b("".join(parts).encode(), digest_size=8).hexdigest()


def changed_stages() -> list[str]:
    """Stages whose code isn't the code that their line was written for."""
    return [name for name, line in read().items() if digest_of(line["code"]) != line["digest"]]


def main(arguments: list[str]) -> str:
    """Renew lines. Returns what was done, in words."""
    verdict, *names = arguments or [""]
    if verdict not in ("same", "changed") or (verdict == "changed" and not names):
        return f"{__doc__}\nchanged now: {', '.join(changed_stages()) or 'none'}"
    lines = read()
    unknown = set(names) - lines.keys()
    if unknown:
        return f"there is no stage {', '.join(sorted(unknown))}; the stages are {', '.join(lines)}"
    for name in names or changed_stages():
        line = lines[name]
        lines[name] = line | {"version": line["version"] + (verdict == "changed"), "digest": digest_of(line["code"])}
    rows = [f" {json.dumps(name)}: {json.dumps(line)}" for name, line in lines.items()]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
    return f"renewed: {', '.join(names) or 'all that changed'}"


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
