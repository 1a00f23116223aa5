"""A device without free memory: one message with the stage and a setting; the run can be resumed."""

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets

from darwinlm.recovery.train import Training

TRAINING = ("recovery.tokens=512", "recovery.batch_tokens=128", "refit.tokens=0")


FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of ..."),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: ..."),
)


@pytest.mark.parametrize("error", FULL)
def test_one_message_names_stage_and_setting(error, command, tiny_llama, tiny_text_file, tmp_path, monkeypatch):
    settings = (*SETTINGS, *TRAINING, "compute.batch_tokens=128")
    common = ("prune", tiny_llama, "--keep", "60%", "--text", tiny_text_file, "--out", tmp_path / "out")
    arguments = (*common, *sets(settings))

    def full(self: Training, step: int) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", full)
        ended = command(*arguments)
        ended.refused(
            "recovery: the memory of cpu is full: lower compute.batch_tokens (128)", "; finished work is kept"
        )
    assert command(*arguments).code == 0
