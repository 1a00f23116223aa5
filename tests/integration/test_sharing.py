"""Weights that processes share: memory of each while they are loaded and run."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.process import together

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recovery.model import logits_of, run_dense

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose blocks are nearly all of it."""
    return tiny_checkpoint(tmp_path_factory.mktemp("dense") / "model", **SIZES)


def shared(model: Path, processes: int) -> list[dict[str, Any]]:
    """What each process saw."""
    first = together("tests.tiny.sharing", model, processes=processes)[0]
    (line,) = (line for line in first.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


def test_no_process_holds_a_whole_dense_or_trained_model(dense: Path):
    """Neither while it is loaded nor while it runs: one block at a time, beside a share of all."""
    seen = shared(dense, 4)
    whole = Checkpoint.open(dense)
    size = sum(4 * weight.numel() for weight in whole.outline.parameters())
    assert size > 300e6
    model = whole.load(torch.float32)
    expected = logits_of(model, run_dense(model, torch.arange(8)[None])[0]).double().mean(0)[:4].tolist()
    for process in seen:
        assert process["mesh"] == [0, 1, 2, 3]
        assert process["held"] == pytest.approx(size / 4, rel=0.01)
        assert process["peak"] < 0.35 * size
        assert process["running"] < 0.6 * size
        assert process["trained_held"] == pytest.approx(size / 4, rel=0.01)
        assert process["trained_peak"] < 0.35 * size
        assert process["trained_wants"] == size / 4, "all weights are trained"
        assert process["logits"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
