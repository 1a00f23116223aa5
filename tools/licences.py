"""Write the licences of the installed dependencies, direct and indirect, to docs/licences.md."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("gguf", "eval")
PAGE = Path("docs/licences.md")
HEAD = """# Licences of the dependencies

The licences that the packages state which `darwinlm[{extras}]` installs, directly or indirectly, on a machine without a
GPU. PyTorch for CUDA adds libraries of NVIDIA under their own terms. `make audit` writes this page.
"""


def needed(name: str, extras: tuple[str, ...], found: dict[str, str]) -> None:
    """Add a package's dependencies and theirs to `found`, a mapping of names to licences."""
    for line in distribution(name).requires or ():
        requirement = Requirement(line)
        if not any(
            requirement.marker is None or requirement.marker.evaluate({"extra": each}) for each in ("", *extras)
        ):
            continue
        dependency = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if dependency in found:
            continue
        try:
            found[dependency] = licence(dependency)
        except PackageNotFoundError:
            continue
        needed(dependency, tuple(requirement.extras), found)


def licence(name: str) -> str:
    """The licence that a package states; the classifiers are the oldest and most common way."""
    about = distribution(name).metadata
    classified = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if line.startswith("License")]
    stated = str(about.get("License", "")).strip().partition("\n")[0]
    return about.get("License-Expression") or ", ".join(classified) or stated or "not stated"


def main() -> None:
    found: dict[str, str] = {}
    needed("darwinlm", EXTRAS, found)
    found.pop("darwinlm", None)
    packages: dict[str, list[str]] = {}
    for name in sorted(found):
        packages.setdefault(found[name], []).append(name)
    rows = "".join(f"- {licence}: {', '.join(packages[licence])}\n" for licence in sorted(packages))
    PAGE.write_text(f"{HEAD.format(extras=','.join(EXTRAS))}\n{rows}", encoding="utf-8")


if __name__ == "__main__":
    main()
