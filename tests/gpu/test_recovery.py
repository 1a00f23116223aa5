"""Recovery on the pretend device: the CPU's losses, and few waits in each step."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from darwinlm.recipe import RecoverySettings
from darwinlm.recovery.schedule import plan_steps
from darwinlm.recovery.train import Training
from tests.gpu.device import Gpu
from tests.gpu.rules import NAME
from tests.tiny.models import tiny_model

LENGTH = 16
SETTINGS = RecoverySettings(tokens=3 * 8 * LENGTH, batch_tokens=8 * LENGTH, distillation=0.6, learning_rate=0.01)
STEPS = plan_steps(SETTINGS, LENGTH, 2 * LENGTH)
TOKENS = torch.randint(3, 250, (STEPS.sequences + 4, LENGTH), generator=torch.Generator().manual_seed(0))


def log_of(device: str, folder: Path, **more: Any) -> list[dict[str, float]]:
    text: Any = [{"input_ids": row} for row in TOKENS[4:]]
    options = {"device": torch.device(device), "dtype": torch.float32, **more}
    teacher = tiny_model("llama", 0).to(device)
    training = Training(
        lambda each=None: tiny_model("llama", 1), teacher, text, TOKENS[:4], STEPS, SETTINGS, folder, {}, **options
    )
    return training.train()[1]["log"]


def test_a_training_is_the_cpus_and_waits_little(gpu: Gpu, tmp_path):
    waits: list[Counter[str]] = []
    found = log_of(NAME, tmp_path / NAME, progress=lambda *_: waits.append(gpu.restart()[0].waits))
    assert not gpu.tally.mixes
    for ours, theirs in zip(found, log_of("cpu", tmp_path / "cpu"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    step = waits[1]  # between evaluations
    assert STEPS.accumulation == 4
    assert sum(step.values()) <= 2 * STEPS.accumulation + 1, step  # transformers' mask in both models, and the loss
    assert not any("batch_loss" in line for line in step)
