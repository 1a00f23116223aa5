"""Plugin of vLLM (entry point `vllm.general_plugins`): pruned models are served without a flag and without padding.

vLLM calls `register` in each of its processes before it reads a model, whatever the model is. So it imports no model
and no PyTorch: vLLM gets our models by name, and transformers gets a configuration class when it first asks for one of
ours.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from logging import getLogger
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from darwinlm.model.families.family import Family

CONFIGURATIONS = "transformers.models.auto.configuration_auto"
"""Module with transformers' configuration classes by model type."""
ADAPTERS = "darwinlm.formats.vllm.vllm_model"

logger = getLogger(__name__)


def register() -> None:
    """Register every family's pruned classes with transformers and vLLM, without importing any of them.

    It raises nothing, because vLLM would then serve no model at all: families that can't be registered are logged.
    """
    try:
        _register()
    except Exception as error:  # noqa: BLE001 - other releases may raise anything
        logger.warning("darwinlm: pruned models aren't served by this release of vLLM or transformers: %r", error)


def _register() -> None:
    from vllm import ModelRegistry

    known = set(ModelRegistry.get_supported_archs())
    families = dict(_served())
    for architecture, family in families.items():
        adapter = "PrunedForCausalLM" if family.mlp.experts is None else "PrunedMoEForCausalLM"
        if architecture in known:
            continue
        try:
            ModelRegistry.register_model(architecture, f"{ADAPTERS}:{adapter}")
        except Exception as error:  # noqa: BLE001 - concerns no other family
            logger.warning("darwinlm: pruned models of %s aren't served: %r", family.title, error)
    _know_configurations({family.pruned_type for family in families.values()})


def _served() -> Iterator[tuple[str, Family]]:
    """Families that vLLM can serve, each with the name of the class of its pruned models."""
    from darwinlm.model.families.family import families, pruned_class

    for family in families().values():
        if family.mixer is not None or family.tail is not None or family.bidirectional:
            continue
        try:
            yield pruned_class(family), family
        except LookupError:
            logger.info("darwinlm: this release of transformers has no %s", family.title)


def _know_configurations(model_types: set[str]) -> None:
    """Let transformers find the configuration classes of model types, now or when it is imported."""
    if CONFIGURATIONS in sys.modules:
        _extend(sys.modules[CONFIGURATIONS], model_types)
    else:
        sys.meta_path.insert(0, _AfterImport(model_types))


def _extend(module: ModuleType, model_types: set[str]) -> None:
    mapping: Any = getattr(module, "CONFIG_MAPPING", None)
    if not isinstance(getattr(mapping, "_extra_content", None), dict):
        logger.warning("darwinlm: pruned models need --trust-remote-code with this release of transformers")
        return
    mapping._extra_content = LazyConfigurations(mapping._extra_content, model_types)


class LazyConfigurations(dict[str, "type[PreTrainedConfig]"]):
    """Registered configuration classes by model type, of which ours are defined when they are first asked for."""

    def __init__(self, registered: dict[str, type[PreTrainedConfig]], model_types: set[str]) -> None:
        super().__init__(registered)
        self.model_types = model_types

    def __contains__(self, model_type: object) -> bool:
        return super().__contains__(model_type) or model_type in self.model_types

    def __missing__(self, model_type: str) -> type[PreTrainedConfig]:
        if model_type not in self.model_types:
            raise KeyError(model_type)
        from darwinlm.model.families.pruned import register as define

        define(model_type)  # which adds it here, through AutoConfig.register
        if (defined := self.get(model_type)) is None:
            raise KeyError(model_type)
        return defined


class _AfterImport(MetaPathFinder):
    """Extends transformers' configuration classes once they are imported; every other import is left alone."""

    def __init__(self, model_types: set[str]) -> None:
        self.model_types = model_types

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's own spec, whose loader extends it afterwards; None for other modules."""
        if fullname != CONFIGURATIONS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_extend(module: ModuleType) -> None:
            execute(module)
            _extend(module, self.model_types)

        spec.loader.exec_module = execute_and_extend  # type: ignore[method-assign]
        return spec
