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

from darwinlm.model.families.family import families

pytest.importorskip("vllm", reason="vLLM lives in an environment of its own: make test-vllm")
pytestmark = pytest.mark.timeout(1800)  # an engine takes a minute to start, on a busy machine many

TESTED = [name for name, family in families().items() if "vllm" in family.engines]
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


SERVE = """
import json, sys
from vllm import LLM, SamplingParams
folder, tokens, new = json.loads(sys.argv[1])
how = {"max_logprobs": -1, "logprobs_mode": "raw_logprobs", "disable_log_stats": True, "enable_prefix_caching": False}
engine = LLM(folder, dtype="float32", max_model_len=128, enforce_eager=True, **how)
def request(tokens, new, **more):
    parameters = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, **more)
    return engine.generate({"prompt_token_ids": tokens}, parameters, use_tqdm=False)[0].outputs[0]
scores = [request(tokens[:end], 1, logprobs=-1).logprobs[0] for end in range(1, 5)]
rows = [[each[token].logprob for token in sorted(each)] for each in scores]
print(json.dumps([list(request(tokens, new).token_ids), rows]))
"""


def assert_same(folder: Path) -> None:
    """The same greedy tokens and log probabilities in vLLM, which has our plugin."""
    request = json.dumps([str(folder), TOKENS, NEW])
    done = subprocess.run([sys.executable, "-c", SERVE, request], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    greedily, rows = json.loads(done.stdout.splitlines()[-1])
    assert greedily == greedy(folder)
    torch.testing.assert_close(torch.tensor(rows), log_probabilities(folder)[:4], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("model_type", TESTED)
def test_the_plugin_needs_neither_flag_nor_pads(tmp_path, model_type):
    folder = pruned_checkpoint(tmp_path / "model", model_type, MIXED)
    assert_same(folder)


def test_equal_layers_run_as_vllm_s_own_class(tmp_path):
    folder = plain_checkpoint(tmp_path / "model", "llama")
    assert_same(folder)
