"""Pruned models in the real vLLM. Run by `make test-vllm` in an environment of its own, not by default."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint
from transformers import AutoModelForCausalLM

from darwinlm.engines.process import EngineProcess
from darwinlm.engines.vllm_plugin import TESTED
from darwinlm.export.run import export_model

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")
pytestmark = pytest.mark.timeout(1800)  # an engine takes a minute to start, on a busy machine many

TOKENS = [5, 17, 101, 33, 250, 8, 99, 4, 61, 12, 7]
NEW = 24
MIXED = {0: (0, 0, 96), 1: (2, 2, 0), 2: (2, 1, 64)}
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)


@torch.no_grad()
def greedy(folder: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    options = {
        "do_sample": False,
        "min_new_tokens": NEW,
        "max_new_tokens": NEW,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    return model.generate(torch.tensor([TOKENS]), **options)[0, len(TOKENS) :].tolist()


@torch.no_grad()
def log_probabilities(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(torch.tensor([TOKENS])).logits[0].log_softmax(-1)


def assert_same(folder: Path, served: Path, **options: object) -> None:
    with EngineProcess("vllm", served, dtype="float32", context=128, **options) as engine:
        assert engine.greedy(TOKENS, NEW) == greedy(folder)
        found = torch.from_numpy(engine.logits(TOKENS[:4])).log_softmax(-1)
    torch.testing.assert_close(found, log_probabilities(folder)[:4], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("model_type", TESTED)
def test_the_plugin_needs_neither_flag_nor_pads(tmp_path, model_type):
    folder = pruned_checkpoint(tmp_path / "model", model_type, MIXED)
    assert_same(folder, folder)


STOCK = """
import json, sys
from vllm import LLM, SamplingParams
folder, tokens, new = json.loads(sys.argv[1])
engine = LLM(folder, dtype="float32", max_model_len=128, trust_remote_code=True, enforce_eager=True)
parameters = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
made = engine.generate({"prompt_token_ids": tokens}, parameters, use_tqdm=False)[0].outputs[0].token_ids
print(json.dumps([list(made), "darwinlm" in sys.modules]))
"""


def test_the_export_runs_where_this_package_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "")
    folder = pruned_checkpoint(tmp_path / "model", "llama", MIXED)
    export_model(folder, tmp_path / "out", to="vllm")
    request = json.dumps([str(tmp_path / "out"), TOKENS, NEW])
    command = [sys.executable, "-c", STOCK, request]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [greedy(folder), False]
    assert_same(folder, tmp_path / "out", allow_remote_code=True)


def test_the_export_gives_unevenly_shared_heads_kv_heads_of_their_own(tmp_path):
    folder = pruned_checkpoint(tmp_path / "model", "llama", {1: (3, 2, 96)}, query_groups={1: (0, 0, 1)})
    export_model(folder, tmp_path / "out", to="vllm")
    assert_same(folder, tmp_path / "out")


def test_equal_layers_run_as_vllm_s_own_class(tmp_path):
    folder = plain_checkpoint(tmp_path / "model", "llama")
    export_model(folder, tmp_path / "out", to="vllm")
    assert_same(folder, tmp_path / "out")
