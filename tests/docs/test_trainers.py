"""The examples of the page about other trainers, each for two steps on a tiny model with unequal layers."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands import launch
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from tests.tiny.process import forked, python
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "trainers.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", TEXT, flags=re.M | re.S)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
CHAT = [{"role": "user", "content": "Which river?"}, {"role": "assistant", "content": "The Rhine, in the north."}]


@pytest.fixture
def model(finished_llama, tmp_path):
    """A model with unequal layers and a chat template, in tmp_path/model beside chats.jsonl."""
    tokenizer = AutoTokenizer.from_pretrained(finished_llama / "model")
    tokenizer.chat_template = TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(finished_llama / "model")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps({'messages': CHAT})}\n" * 32)
    return model


def sharded(model):
    """Modules that accelerate shards each for itself."""
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(model)
    shards = fsdp2_prepare_auto_wrap_policy(plugin, model)
    return [part for part in model.modules() if shards(part)]


def assert_trained(model, folder):
    trained = AutoModelForCausalLM.from_pretrained(folder)
    assert trained.config.to_dict()["per_layer_config"] == model.config.to_dict()["per_layer_config"]
    changed = [
        name for name, weight in trained.named_parameters() if not torch.equal(weight, model.get_parameter(name))
    ]
    assert any("self_attn" in name for name in changed)
    assert any("mlp" in name for name in changed)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("code", [code for _, code in EXAMPLES], ids=[title for title, _ in EXAMPLES])
def test_an_example_trains_and_its_model_loads_again(code, model, tiny_llama, tmp_path):
    code = code.replace('"runs/mine/model"', repr(str(tmp_path / "model")))
    code = code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tiny_llama))
    code = code.replace("max_steps=1000", "max_steps=2, report_to='none'")
    assert "max_steps=2" in code
    assert "use_cpu=not gpu" in code, "it would need a GPU"
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    forked(tmp_path / "example.py", cwd=tmp_path)
    (folder,) = (tmp_path / "runs").glob("*/model/config.json")
    assert_trained(model, folder.parent)


@pytest.mark.timeout(3600)
def test_the_configuration_for_axolotl_trains_and_its_model_loads_again(model, tmp_path):
    pytest.importorskip("axolotl", reason="axolotl is not installed: make test-axolotl")
    (said,) = re.findall(r"^```yaml\n(.*?)```", TEXT, flags=re.M | re.S)
    settings = yaml.safe_load(said)
    few = {"base_model": str(tmp_path / "model"), "max_steps": 2, "sequence_len": 128, "bf16": False}
    few |= {"micro_batch_size": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-3}
    assert settings.keys() >= few.keys()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings | few), encoding="utf-8")
    python("-m", "axolotl.cli.main", "train", "mine.yaml", "--launcher", "python", cwd=tmp_path, DO_NOT_TRACK="1")
    assert_trained(model, tmp_path / settings["output_dir"])


def test_accelerate_shards_the_blocks_of_a_model_with_unequal_layers(model, monkeypatch):
    """As the page on GPUs says, as far as that can be checked without one."""
    file = ROOT / "recipes" / "cluster" / "fsdp2.yaml"
    (several,) = re.findall(r"^#   (--num_machines .*)$", file.read_text(encoding="utf-8"), flags=re.M)
    words = several.replace("RANK", "1").split()  # only the first machine looks for a free port
    arguments = launch.launch_command_parser().parse_args(["--config_file", str(file), *words, "distil.py"])
    arguments, *_ = launch._validate_launch_command(arguments)
    assert (arguments.use_fsdp, arguments.num_processes, arguments.mixed_precision) == (True, 16, "bf16")
    for name, value in prepare_multi_gpu_env(arguments).items():
        if name.startswith("FSDP"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward
    assert sharded(model) == list(model.model.layers)
