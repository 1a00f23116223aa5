"""`import darwinlm` is all that transformers needs to load our models, whichever of the two is imported first."""

import json

import pytest
import torch
from tests.tiny.cutting import MIXED, cut, logits, tokens
from tests.tiny.models import FAMILIES, tiny_model
from tests.tiny.process import python
from transformers import AutoConfig, AutoModelForCausalLM

from darwinlm.families.family import families

FIRST_OURS = """
import sys
import darwinlm
heavy = {"torch", "transformers", "pydantic", "numpy"} & set(sys.modules)
assert not heavy, heavy
from transformers import AutoModelForCausalLM
assert not any(type(finder).__module__.startswith("darwinlm") for finder in sys.meta_path)
import transformers.models.auto.configuration_auto as table
assert not type(table.__loader__).__module__.startswith("darwinlm")
assert table.__spec__.loader is table.__loader__
"""
FIRST_THEIRS = """
from transformers import AutoModelForCausalLM
import darwinlm
"""
CONFIGURATION_ONLY = """
import darwinlm
from transformers import AutoConfig
assert AutoConfig.from_pretrained(sys.argv[2]).model_type.startswith("darwinlm_")
from transformers import AutoModelForCausalLM
"""
LOAD = """
import json, sys, torch
ids = torch.tensor(json.loads(sys.argv[1]))
with torch.no_grad():
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in sys.argv[2:]]
    print(json.dumps([[type(m).__module__, type(m).__name__, m.eval()(ids).logits.tolist()] for m in models]))
"""


BEGINNINGS = {"ours": FIRST_OURS, "theirs": FIRST_THEIRS, "configuration": CONFIGURATION_ONLY}


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
def test_importing_the_package_is_enough(begin, tmp_path):
    models = {model_type: cut(tiny_model(model_type), MIXED) for model_type in ("llama", "gemma3_text", "mixtral")}
    for model_type, model in models.items():
        model.save_pretrained(tmp_path / model_type)
    ids = tokens(length=8)
    done = python("-c", "import sys\n" + begin + LOAD, json.dumps(ids.tolist()), *tmp_path.iterdir())
    for folder, (module, name, found) in zip(tmp_path.iterdir(), json.loads(done.stdout), strict=True):
        model = models[folder.name]
        assert (module, name) == ("darwinlm.families.modeling_darwinlm", type(model).__name__)
        assert torch.equal(torch.tensor(found), logits(model, ids))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_configuration_made_by_name_is_of_the_real_class(model_type):
    switch, (prefix, *_) = families()[model_type].switch, families()[model_type].class_names
    sizes = tiny_model(model_type).config.to_dict()
    model_type = sizes.pop("model_type")
    layers = {int(layer): values for layer, values in sizes.pop("per_layer_config", {}).items()}  # Gemma 4 has some
    layers[0] = {"skip": ["mlp"], **({} if switch is None else {switch: type(sizes[switch])()})}
    config = AutoConfig.for_model(f"darwinlm_{model_type}", **sizes, per_layer_config=layers)
    assert type(config).__name__ == f"Darwin{prefix}Config"
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == f"Darwin{prefix}ForCausalLM"
    assert not any("layers.0.mlp" in name for name, _ in model.named_parameters())
