"""Llama 3.1's rotary embedding, which GGUF files hold as divisors of the frequencies."""

import pytest
import torch
from tests.tiny.llama_cpp import LLAMA3 as SHORT
from tests.tiny.pruned import plain_checkpoint
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from darwinlm.export.gguf import export_gguf
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.models.resolve import resolve_model
from darwinlm.runtime.errors import CheckpointError

gguf = pytest.importorskip("gguf")


def llama3(theta=5e5, factor=8.0, low=1.0, high=4.0, original=8192):
    return {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        },
        "max_position_embeddings": 131072,
    }


CASES = {
    "Llama 3.1": llama3(),
    "Llama 3.2": llama3(factor=32.0),
    "other bounds": llama3(low=2.0, high=12.0, original=2048),
    "a short context": SHORT,
}


def divisors(path):
    return next(torch.tensor(t.data) for t in gguf.GGUFReader(path).tensors if t.name == "rope_freqs.weight")


@pytest.mark.parametrize("case", CASES)
def test_the_divisors_become_settings_that_give_them(tmp_path, case):
    folder = plain_checkpoint(tmp_path / "model", "llama", **CASES[case])
    export_gguf(Checkpoint.open(folder), tmp_path / "m.gguf", quantisation="f32")
    ours, theirs = resolve_model(str(tmp_path / "m.gguf"), tmp_path / "work"), Checkpoint.open(folder)
    rope = ours.config.rope_parameters
    assert rope["rope_type"] == "llama3"
    found, meant = (ROPE_INIT_FUNCTIONS["llama3"](each.config, torch.device("cpu"))[0] for each in (ours, theirs))
    torch.testing.assert_close(found, meant, rtol=1e-5, atol=0)
    plain = rope["rope_theta"] ** -(torch.arange(len(found), dtype=torch.float64) / len(found))
    torch.testing.assert_close((plain / found).float(), divisors(tmp_path / "m.gguf"), rtol=1e-5, atol=0)
    if case.startswith("Llama"):
        assert {name: rope[name] for name in CASES[case]["rope_parameters"]} == CASES[case]["rope_parameters"]
    tokens = torch.arange(300)[None] % 256
    with torch.no_grad():
        left, right = (
            AutoModelForCausalLM.from_pretrained(each.folder, dtype=torch.float32)(tokens).logits
            for each in (ours, theirs)
        )
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [lambda factors: factors.flip(0), lambda factors: factors * 0.5])
def test_divisors_of_something_else_are_refused(tmp_path, change):
    folder = plain_checkpoint(tmp_path / "model", "llama", **CASES["Llama 3.1"])
    path = tmp_path / "m.gguf"
    export_gguf(Checkpoint.open(folder), path, quantisation="f32")
    factors, data = divisors(path), path.read_bytes()
    stored = factors.numpy().tobytes()
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, change(factors).numpy().tobytes()))
    with pytest.raises(
        CheckpointError, match=r"m\.gguf scales its rotary embedding by the tensor rope_freqs\.weight in a way that"
    ):
        resolve_model(str(path), tmp_path / "work")
    assert not (tmp_path / "work").exists()
