"""Write the documentation pages that are generated from the code: the recipe reference and the list of errors.

    python tools/pages.py

`--check` writes nothing and fails if a page is out of date.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path

from darwinlm import errors
from darwinlm.recipe import describe_fields

DOCS = Path(__file__).parents[1] / "docs"


def recipe_page() -> str:
    """Every field of the recipe with its default and meaning, by section."""
    lines = [
        "# Recipe reference",
        "",
        "All settings with their defaults. Change one with `--set section.field=value`,",
        "or write a YAML file and pass it with `--recipe FILE.yaml`.",
        "`darwinlm schema all` prints the same list.",
    ]
    section = None
    for name, default, meaning in describe_fields():
        here = name.rpartition(".")[0] or "recipe"
        if here != section:
            section = here
            lines += ["", f"## {section}", "", "| field | default | meaning |", "| --- | --- | --- |"]
        cells = (f"`{name}`", f"`{default}`" if default else "", " ".join(meaning.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Every error with its cause and remedy."""
    lines = [
        "# Troubleshooting",
        "",
        "Wrong input ends with one line on standard error and exit status 2, without half-written files.",
        "Rerun the same command to resume an interrupted run (Ctrl-C, status 130).",
        "In Python every error is a `darwinlm.DarwinLMError`.",
        "",
        "| error | cause | what to do |",
        "| --- | --- | --- |",
    ]
    for name, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.DarwinLMError) and error is not errors.DarwinLMError:
            cause, _, remedy = inspect.cleandoc(error.__doc__ or "").partition("\n\nWhat to do: ")
            remedy = " ".join(remedy.split())
            lines.append(f"| `{name}` | {' '.join(cause.split())} | {remedy[:1].upper()}{remedy[1:]} |")
    lines += [
        "",
        "## Slow, or out of memory?",
        "",
        "`darwinlm plan MODEL --keep 50% --device DEVICE` predicts the needs of each stage before a run,",
        "and names a setting that makes it fit.",
        "On a CPU, install PyTorch from its CPU index first to avoid gigabytes of CUDA libraries.",
    ]
    return "\n".join(lines) + "\n"


PAGES = {"recipe.md": recipe_page, "troubleshooting.md": errors_page}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for name, make in PAGES.items():
        path, text = DOCS / name, make()
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"error: docs/{name} is out of date: run python tools/pages.py")


if __name__ == "__main__":
    main()
