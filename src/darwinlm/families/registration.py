"""Register our model types with transformers' Auto classes, without importing transformers.

Importing transformers takes seconds, which `import darwinlm` must not, in either order of imports. So registration
waits for the module of transformers with the table of configurations. An import finder handles only this module and is
removed after its import. It registers a stand-in for each configuration class. The family's modelling code is imported
when a checkpoint of that family is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from darwinlm.families.family import Family

TABLE = "transformers.models.auto.configuration_auto"


def register_when_imported() -> None:
    """Register all families with the Auto classes: now if they are imported, else right after their import."""
    if TABLE in sys.modules:
        register_families()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def register_families() -> None:
    """Register a stand-in for the configuration of every family that has no class yet."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    from darwinlm.families.family import PREFIX, class_prefix, families

    for family in families().values():
        model_type = PREFIX + family.model_type
        if model_type not in CONFIG_MAPPING:
            AutoConfig.register(model_type, _stand_in(model_type, family))
        for name in family.inside:
            if PREFIX + name not in CONFIG_MAPPING:
                AutoConfig.register(PREFIX + name, _stand_in(PREFIX + name, family, (class_prefix(name), name)))


def _stand_in(model_type: str, family: Family, whole: tuple[str, str] | None = None) -> type:
    """A class that creates configurations of the family's real class, which is defined and registered on first use.

    `whole` is the class prefix and package of a model with further parts around the language model.
    """

    def real() -> Any:
        from darwinlm.families.pruned import pruned_classes, pruned_whole

        classes = pruned_classes(*family.class_names)
        return classes[0] if whole is None else pruned_whole(*whole, classes)[0]

    class StandIn:
        def __new__(cls, *args: Any, **values: Any) -> Any:
            return real()(*args, **values)

        from_dict = staticmethod(lambda *args, **values: real().from_dict(*args, **values))
        from_pretrained = staticmethod(lambda *args, **values: real().from_pretrained(*args, **values))

    StandIn.model_type = model_type  # type: ignore[attr-defined]
    StandIn.__name__ = StandIn.__qualname__ = f"Darwin{family.class_names[0]}Config"
    return StandIn


class _Waiting(MetaPathFinder):
    """Finds one module with the other finders, and registers the families after its import."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != TABLE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_register(module: ModuleType) -> None:
                execute(module)
                register_families()

            spec.loader.exec_module = then_register  # type: ignore[method-assign]
        return spec
