"""Checks of the shapes and element types in the signatures of formulas: what the import hook of jaxtyping uses."""

from __future__ import annotations

from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

FORMULAS = (
    "darwinlm.model.divergence",
    "darwinlm.model.walk.moments",
    "darwinlm.steps.database.elimination",
    "darwinlm.steps.database.factors",
    "darwinlm.steps.database.order",
    "darwinlm.steps.recover.losses",
    "darwinlm.steps.refit.projection_fit",
    "darwinlm.steps.refit.ridge",
)
_checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a whole number is a float


def checked(function: Any) -> Any:
    """A function or a class that refuses arguments and results of other types than its signature has."""
    return _checked(function)


def check_formulas() -> None:
    """Check every call of the formulas in this process, which hasn't imported them yet."""
    install_import_hook(FORMULAS, "tests.tiny.shapes.checked")
