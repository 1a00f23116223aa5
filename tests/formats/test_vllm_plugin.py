"""The plugin of vLLM with a stand-in for vLLM, in processes of their own: what it registers, and what it imports."""

import json
from typing import Any

import pytest
from tests.tiny.process import python

from darwinlm.model.families.family import families, pruned_class

START = """
import json, logging, sys, types
logging.basicConfig(level="INFO", stream=sys.stderr, format="%(levelname)s %(message)s")

class ModelRegistry:
    models = {}

    def get_supported_archs():
        return {"LlamaForCausalLM", *ModelRegistry.models}

    def register_model(name, target):
        ModelRegistry.models[name] = target

sys.modules["vllm"] = types.ModuleType("vllm")
sys.modules["vllm"].ModelRegistry = ModelRegistry
from darwinlm.formats.vllm.vllm_plugin import register

def loaded():
    return sorted(name for name in sys.modules if name.startswith("transformers.models.") and "modeling_" in name)

def say(**values):
    print(json.dumps(values))

def fails(*_):
    raise OSError("no libcuda.so")
"""


def said(program: str) -> tuple[dict[str, Any], str]:
    """What a program says on its last line, and its log."""
    ended = python("-c", START + program)
    values: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return values, ended.stderr


def test_it_imports_no_model_and_not_even_pytorch() -> None:
    values, log = said("register()\nsay(torch='torch' in sys.modules, loaded=loaded(), models=ModelRegistry.models)")
    assert not values["torch"]
    assert values["loaded"] == []
    language = [family for family in families().values() if not family.bidirectional]
    served = [family for family in language if family.mixer is None and family.tail is None]
    assert values["models"].keys() == {pruned_class(family) for family in served}
    assert values["models"]["DarwinLlamaForCausalLM"] == "darwinlm.formats.vllm.vllm_model:PrunedForCausalLM"
    assert values["models"]["DarwinMixtralForCausalLM"] == "darwinlm.formats.vllm.vllm_model:PrunedMoEForCausalLM"
    assert "darwinlm" not in log


ASK = """
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
known = ["darwinlm_llama" in CONFIG_MAPPING, "darwinlm_otter" in CONFIG_MAPPING, "llama" in CONFIG_MAPPING]
before = loaded()
kind = CONFIG_MAPPING["darwinlm_llama"].__name__
again = CONFIG_MAPPING["darwinlm_llama"].__name__
say(known=known, before=before, kind=[kind, again], loaded=loaded())
"""


def test_a_family_is_imported_when_its_configuration_is_asked_for() -> None:
    """Transformers is imported later here, and earlier in the next test."""
    values, _ = said("register()\n" + ASK)
    assert values["known"] == [True, False, True]
    assert values["before"] == []
    assert values["kind"] == ["DarwinLlamaConfig"] * 2
    assert "transformers.models.llama.modeling_llama" in values["loaded"]
    assert "transformers.models.mistral.modeling_mistral" not in values["loaded"]


BROKEN = """
sys.modules["transformers.models.gemma.modeling_gemma"] = None
from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
del CONFIG_MAPPING_NAMES["helium"]
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
register()
before = loaded()
try:
    CONFIG_MAPPING["darwinlm_gemma"]
except ImportError as error:
    failed = str(error)
say(models=sorted(ModelRegistry.models), before=before, kind=CONFIG_MAPPING["darwinlm_llama"].__name__, failed=failed)
"""


def test_a_family_that_fails_concerns_no_other() -> None:
    values, log = said(BROKEN)
    assert values["before"] == ["transformers.models.gemma.modeling_gemma"], "the broken one stands for itself"
    assert "DarwinLlamaForCausalLM" in values["models"]
    assert "DarwinHeliumForCausalLM" not in values["models"]
    assert "INFO darwinlm: this release of transformers has no Helium" in log
    assert values["kind"] == "DarwinLlamaConfig"
    assert "modeling_gemma" in values["failed"]


OTHERS = {
    "del sys.modules['vllm'].ModelRegistry": "pruned models aren't served by this release of vLLM or transformers",
    "sys.modules['transformers.models.auto.auto_mappings'] = None": "aren't served by this release of vLLM or",
    "sys.modules['vllm'] = None": "aren't served by this release of vLLM or",
    "sys.modules['vllm'].__getattr__ = fails\ndel sys.modules['vllm'].ModelRegistry": "OSError('no libcuda.so')",
    "ModelRegistry.get_supported_archs = lambda: None": "aren't served by this release of vLLM or",
    "ModelRegistry.get_supported_archs = lambda device: []": "aren't served by this release of vLLM or",
    "ModelRegistry.register_model = lambda name: None": "pruned models of Llama (also SmolLM2) aren't served",
    "ModelRegistry.register_model = fails": "Llama (also SmolLM2) aren't served: OSError('no libcuda.so')",
}


@pytest.mark.parametrize("change", OTHERS)
def test_other_releases_are_logged(change: str) -> None:
    values, log = said(change + "\nregister()\nsay(models=ModelRegistry.models)")
    assert values["models"] == {}
    assert "WARNING darwinlm: pruned models" in log
    assert OTHERS[change] in log
