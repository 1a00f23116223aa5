"""A saved model needs transformers and nothing of ours: it loads and generates where darwinlm can't be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from tests.tiny.cutting import cut, logits, tokens
from tests.tiny.models import FAMILIES
from tests.tiny.process import PATIENCE
from transformers import AutoTokenizer

from darwinlm.model.families.family import family_of
from darwinlm.model.families.modeling_darwinlm import auto_map

WITHOUT = """
import copy, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "darwinlm":
            raise ImportError(f"{name} isn't installed here")

sys.meta_path.insert(0, Refuse())
try:
    import darwinlm
except ImportError:
    pass
else:
    raise SystemExit("darwinlm can be imported: this test proves nothing")

import torch
torch.set_num_threads(1)
"""

TOKENIZER = """
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], **json.loads(sys.argv[2]))
print(json.dumps({
    "ids": tokenizer("the river stone")["input_ids"],
    "ran": [name for name in sys.modules if name.startswith("transformers_modules")],
}))
"""


EVERY_FAMILY = """
from transformers import AutoModel, AutoModelForCausalLM

ids = torch.tensor(json.loads(sys.argv[1]))
found = {}
for name in sys.argv[2:]:
    places = (name, name + "-again")  # saved by this process, which has no other modelling file than the checkpoint's
    found[name] = []
    for place in places:
        # Copies, because rounding depends on the alignment of weights, which mapped files don't keep.
        model = copy.deepcopy(AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True).eval())
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        with torch.no_grad():
            logits = model(ids).logits
            if place == name:
                decoder = copy.deepcopy(AutoModel.from_pretrained(place, trust_remote_code=True).eval())
                assert torch.equal(decoder(ids).last_hidden_state, model.model(ids).last_hidden_state)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        found[name].append({"logits": logits.tolist(), "made": made.tolist()})
        model.set_attn_implementation("eager")
        assert model.model.layers[3].self_attn.config._attn_implementation == "eager"
        if place == name:
            model.save_pretrained(places[1])
    assert not any(module.partition(".")[0] == "darwinlm" for module in sys.modules)
print(json.dumps(found))
"""


OLDER = """
import transformers
from transformers import AutoModelForCausalLM

transformers.__version__ = "4.57.1"
sys.modules["transformers.integrations.heterogeneity"] = None  # came with 5.16
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
except ImportError as error:
    print(json.dumps({"said": str(error)}))
"""


def run_elsewhere(script: str, arguments: list[str], work: Path) -> dict:
    """What a script prints in a process where darwinlm can't be imported. A tokenizer warns of nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_MODULES_CACHE": str(work / "modules"), "HF_HOME": str(work / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + script, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment,
        cwd=work,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert script != TOKENIZER or not done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_family_without_its_first_layer_runs_elsewhere(tmp_path):
    """Or without that layer's attention, in every other one."""
    plans = ("no attention first", "nothing first")
    models = {name: cut(name, plans[i % 2]) for i, name in enumerate(FAMILIES)}
    for model_type, model in models.items():
        model.save_pretrained(tmp_path / model_type)
    ids = tokens(length=12)
    found = run_elsewhere(EVERY_FAMILY, [json.dumps(ids.tolist()), *models], tmp_path)
    for model_type, model in models.items():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        for there in found[model_type]:
            assert torch.equal(torch.tensor(there["logits"]), logits(model, ids)), model_type
            assert there["made"] == made.tolist(), model_type
        for place in (model_type, f"{model_type}-again"):
            stored = json.loads((tmp_path / place / "config.json").read_text())
            assert stored["auto_map"] == auto_map(family_of(model.config).definition().prefix)


def test_the_tokenizer_runs_no_code_of_the_checkpoint_and_warns_of_nothing(finished_llama, tmp_path):
    found = run_elsewhere(TOKENIZER, [str(finished_llama / "model"), '{"trust_remote_code": false}'], tmp_path)
    assert found["ran"] == []
    assert found["ids"] == AutoTokenizer.from_pretrained(finished_llama / "model")("the river stone")["input_ids"]


def test_an_older_transformers_is_told_what_the_model_needs(finished_llama, tmp_path):
    said = run_elsewhere(OLDER, [str(finished_llama / "model")], tmp_path)["said"]
    assert said == (
        "the layers of this model differ in size, which needs transformers 5.16 or newer, and this is 4.57.1: "
        "pip install -U 'transformers>=5.16'"
    )
