"""darwinlm: make a language model smaller and faster while preserving its quality.

`prune` runs the whole pipeline, `prune_sweep` runs it for several sizes, `plan` predicts
memory and time, and `recover` trains the result. `load` loads a model to generate, evaluate and export.
`Recipe`, `load_recipe` and `load_recipes` describe runs; a `Reporter` receives their progress. Every error that input
can cause is a `DarwinLMError`. Names are loaded on first use, so that `import darwinlm` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from darwinlm.runtime.spinning import load_torch
from darwinlm.runtime.version import VERSION

__version__ = VERSION

if TYPE_CHECKING:
    from darwinlm.recipe import Recipe as Recipe
    from darwinlm.recipe import load_recipe as load_recipe
    from darwinlm.recipe import load_recipes as load_recipes
    from darwinlm.runs.loaded import Model as Model
    from darwinlm.runs.loaded import load as load
    from darwinlm.runs.plan_model import plan as plan
    from darwinlm.runs.pruning import Result as Result
    from darwinlm.runs.pruning import prune as prune
    from darwinlm.runs.recovery import recover as recover
    from darwinlm.runs.sweep import prune_sweep as prune_sweep
    from darwinlm.runtime.console import Reporter as Reporter
    from darwinlm.runtime.errors import DarwinLMError as DarwinLMError

_HOMES = {
    "DarwinLMError": "darwinlm.runtime.errors",
    "Model": "darwinlm.runs.loaded",
    "Recipe": "darwinlm.recipe",
    "Reporter": "darwinlm.runtime.console",
    "Result": "darwinlm.runs.pruning",
    "load": "darwinlm.runs.loaded",
    "load_recipe": "darwinlm.recipe",
    "load_recipes": "darwinlm.recipe",
    "plan": "darwinlm.runs.plan_model",
    "prune": "darwinlm.runs.pruning",
    "prune_sweep": "darwinlm.runs.sweep",
    "recover": "darwinlm.runs.recovery",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 - they are strings


_WITH_TORCH = frozenset({"plan", "prune", "prune_sweep", "recover"})
"""Names whose modules import PyTorch."""


def __getattr__(name: str) -> Any:
    if name in _WITH_TORCH:
        load_torch()
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'darwinlm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
