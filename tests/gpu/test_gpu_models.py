"""Models on the pretend device: loaded, decoding as a CUDA graph, and trained; branches that no run takes."""

import gc
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime import cuda_graph, memory
from darwinlm.runtime.errors import CheckpointError
from darwinlm.steps.latency.graphs import WARM_UP, GraphedDecoding, cache_name
from darwinlm.steps.latency.step import Latency
from darwinlm.steps.latency.timing import ModelTimer
from darwinlm.steps.own_text import sampler
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.recover.schedule import plan_steps
from darwinlm.steps.recover.train import Training
from darwinlm.steps.search.student import Student
from tests.gpu.device import Gpu, pretend_gpu
from tests.gpu.rules import NAME
from tests.tiny.models import tiny_model

TOKENS = torch.randint(3, 250, (2, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_nothing_stays_in_main_memory(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    expected = checkpoint.load(torch.float32)(input_ids=TOKENS).logits
    with pretend_gpu():
        model = checkpoint.load(torch.float32, NAME)
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {NAME}
        found = model(input_ids=TOKENS.to(NAME)).logits.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_tensor_that_is_missing_is_named(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    del checkpoint.tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.norm\.weight: fetch the model again"):
        checkpoint.load(torch.float32)


PROMPTS = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
@torch.no_grad()
def test_a_replayed_step_decodes(model_type, tiny_folder):
    checkpoint = Checkpoint.open(tiny_folder(model_type))
    model = checkpoint.load(torch.float32)
    named = {cache_name(model): model(input_ids=PROMPTS, use_cache=True).past_key_values}
    expected = [model(input_ids=PROMPTS[:, :1], use_cache=True, **named).logits for _ in range(WARM_UP + 3)]
    with pretend_gpu() as gpu:
        decoding = GraphedDecoding(checkpoint.load(torch.float32, NAME), PROMPTS.to(NAME), 4)
        for logits in expected[WARM_UP:]:
            torch.testing.assert_close(decoding.step().cpu(), logits, rtol=1e-4, atol=1e-4)
        decoding.rewind()
        assert decoding.step().cpu().isfinite().all()
    (recording,) = gpu.recordings
    assert recording.replays == 4


@pytest.mark.parametrize("failing", ["in Python", "in CUDA"])
def test_a_failed_recording_leaves_its_stream_and_its_memory(gpu, failing):
    card, there = torch.device(NAME, 0), torch.ones(3, device=NAME)
    before = torch.cuda.current_stream(card)

    def refused() -> None:
        assert gc.get_freeze_count() > 0, "objects are out of collections"
        assert torch.cuda.current_stream(card) != before
        if failing == "in CUDA":
            float(there.sum())
        raise RuntimeError("not permitted")

    with pytest.raises(RuntimeError, match="not permitted"):
        cuda_graph.recorded(refused, card)
    assert gc.get_freeze_count() == 0
    assert torch.cuda.current_stream(card) == before
    assert not gpu.clocks.pools, "the allocator serves no recording any more"
    total = torch.zeros(3, device=NAME)
    replay = cuda_graph.recorded(lambda: total.add_(there), card)
    replay()
    assert total.tolist() == [1, 1, 1]


LENGTH = 16
SETTINGS = RecoverySettings(tokens=3 * 8 * LENGTH, batch_tokens=8 * LENGTH, distillation=0.6, learning_rate=0.01)
STEPS = plan_steps(SETTINGS, LENGTH, 2 * LENGTH)
TEXT = torch.randint(3, 250, (STEPS.sequences + 4, LENGTH), generator=torch.Generator().manual_seed(0))


def log_of(device: str, folder: Path, **more: Any) -> list[dict[str, float]]:
    text: Any = [{"input_ids": row} for row in TEXT[4:]]
    options = {"device": torch.device(device), "dtype": torch.float32, **more}
    teacher = tiny_model("llama", 0).to(device)
    training = Training(
        lambda on_block=None: tiny_model("llama", 1), teacher, text, TEXT[:4], STEPS, SETTINGS, folder, {}, **options
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


CARD = torch.device(NAME, 0)


def test_latencies_are_of_the_card_and_its_graphs(gpu):
    machine = Latency(dense=None, tokens=0).key(
        SimpleNamespace(context=SimpleNamespace(device=CARD, dtype=torch.float32))
    )
    assert machine["machine"][:2] == [torch.cuda.get_device_name(CARD), "cuda"]
    assert "CUDA graph" in machine["timed"]
    checkpoint = SimpleNamespace(
        config=SimpleNamespace(vocab_size=9), family=SimpleNamespace(ending="language"), answers=None
    )
    budget = SimpleNamespace(prefill_tokens=2, decode_tokens=2, batch=1)
    timer = ModelTimer(checkpoint, {}, budget, dtype=torch.float32, device=CARD, runs=1)
    assert timer.graphs


CPU_ROWS = torch.device("cpu"), 1 << 40, sampler.CPU_ROWS


@pytest.mark.parametrize(("device", "free", "rows"), [(CARD, 1, 1), (CARD, 1 << 40, sampler.GPU_ROWS), CPU_ROWS])
def test_sampled_rows_are_those_that_fit(monkeypatch, device, free, rows):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    layer = SimpleNamespace(keys=torch.zeros(1, 2, 3, 4), values=None)
    made = SimpleNamespace(device=device, _prompt=SimpleNamespace(layers=[layer]), length=7)
    assert sampler.Sampler._fitting_rows(made) == rows


def test_the_optimiser_is_fused(gpu):
    student = Student([torch.nn.Linear(2, 2, device=CARD)], 1e-3)
    assert student.optimiser.defaults["fused"]
