"""Whole models of an evaluation, their speeds and continuations."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.tiny.stages import run_stages

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime import memory
from darwinlm.runtime.artifact import read_json
from darwinlm.steps.evaluate import measured_models, speed
from darwinlm.steps.evaluate.metric import speed_metrics
from darwinlm.steps.evaluate.speed import measure_speed
from darwinlm.steps.source.whole_model import load_whole


def test_weights_of_whole_models_lie_in_files_where_the_type_is_another(finished_llama, tiny_llama, make_run):
    task, checkpoint = make_run(tiny_llama, finished_llama).task("evaluate"), Checkpoint.open(tiny_llama)
    task = replace(task, context=replace(task.context, dtype=torch.bfloat16))
    model, expected = load_whole(task, checkpoint), checkpoint.load(torch.bfloat16)
    for (name, found), other in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(found, other), name
    assert all(weight.untyped_storage().is_shared() for weight in model.parameters())
    task = replace(task, context=replace(task.context, dtype=torch.float32))
    assert not any(weight.untyped_storage().is_shared() for weight in load_whole(task, checkpoint).parameters())


def test_whole_models_that_do_not_fit_on_a_gpu_are_measured_without_speeds(
    finished_llama, tiny_llama, make_run, tmp_path, monkeypatch
):
    out = Path(shutil.copytree(finished_llama, tmp_path / "out"))
    shutil.rmtree(out / "stages" / "evaluate")
    free = memory.free_bytes
    monkeypatch.setattr(measured_models, "_use", partial(on_a_gpu, measured_models._use))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000 if device.type == "cuda" else free(device))
    run_stages(make_run(tiny_llama, out), "report")
    streamed, whole = (read_json(folder / "stages" / "evaluate" / "models.json") for folder in (out, finished_llama))
    for name, figures in streamed.items():
        metrics, expected = figures["metrics"], whole[name]["metrics"]
        assert metrics["tokens_per_second"] is None
        assert figures["continuations"] == []
        assert figures["looking_back"] == whole[name]["looking_back"]
        assert all(metrics[kind] == expected[kind] for kind in ("params", "perplexity", "kl"))


def on_a_gpu(use, task, *rest):
    """Call a function with a task whose device is a GPU."""
    return use(replace(task, context=replace(task.context, device=torch.device("cuda", 0))), *rest)


class Timed:
    """A model that takes so many seconds for a prompt and for a new token, on a clock of its own."""

    device, now = torch.device("cpu"), 0.0

    def __init__(self, prompt: float, token: float) -> None:
        self.prompt, self.token, self.passes = prompt, token, 0

    def __call__(self, input_ids: torch.Tensor, use_cache: bool) -> None:
        self.passes += 1
        Timed.now += self.prompt

    def generate(self, tokens: torch.Tensor, *, min_new_tokens: int, max_new_tokens: int, **_: object) -> None:
        assert min_new_tokens == max_new_tokens
        Timed.now += self.token * max_new_tokens


@pytest.mark.parametrize(("seconds", "passes"), [(100, 4), (5, 2)])
def test_speeds_are_tokens_by_seconds_of_rounds_after_the_first(monkeypatch, seconds: float, passes: int) -> None:
    monkeypatch.setattr(speed, "now", lambda device: Timed.now)
    monkeypatch.setattr(speed, "SPEED_ROUNDS", 3)
    monkeypatch.setattr(speed, "SPEED_SECONDS", seconds)
    models = {"dense": Timed(2.0, 0.5), "small": Timed(0.5, 0.25)}
    found = measure_speed(models, torch.zeros(1, 32, dtype=torch.int64))
    spread = 0.0 if passes > 2 else None
    for name, prompt, decode in (("dense", 16.0, 2.0), ("small", 64.0, 4.0)):
        expected = {"tokens_per_second": prompt, "decode_tokens_per_second": decode, "speed_spread": spread}
        assert {metric.name: metric.of(found[name]) for metric in speed_metrics()} == expected
    assert {model.passes for model in models.values()} == {passes}
