"""Models that don't fit side by side are measured in pairs, with the same figures."""

import shutil
from pathlib import Path

import torch

from darwinlm import parallel
from darwinlm.artifact import read_json
from darwinlm.pipeline import run_stages
from darwinlm.stages import evaluate
from darwinlm.stages.evaluate import takes_another


def test_as_many_models_at_once_as_fit() -> None:
    assert takes_another([10], 1.0), "one smaller model is always measured beside the dense one"
    assert takes_another([10, 5], 20)
    assert not takes_another([10, 5], 19)
    assert not takes_another([10, 5, 6], 26), "the next one may be as large as the largest so far"
    assert takes_another([10, 5, 6], None)


def test_processes_agree_on_the_room_for_models(monkeypatch) -> None:
    """Their sums would differ in shape if one had room for a model more; what PyTorch keeps for reuse is free."""
    monkeypatch.setattr(evaluate, "free_bytes", lambda device: 10)
    monkeypatch.setattr(parallel, "gather", lambda value: [value, 6, 8])
    assert evaluate.room_for_models(torch.device("cuda")) == 3
    assert evaluate.room_for_models(torch.device("cpu")) is None


def test_figures_are_those_of_all_at_once(finished_llama, tiny_llama, make_run, tmp_path, monkeypatch):
    out = Path(shutil.copytree(finished_llama, tmp_path / "out"))
    shutil.rmtree(out / "stages" / "evaluate")
    monkeypatch.setattr(evaluate, "room_for_models", lambda device: 1.0)
    run_stages(make_run(tiny_llama, out), "evaluate")
    pairs, all_at_once = (read_json(folder / "stages" / "evaluate" / "models.json") for folder in (out, finished_llama))
    assert list(pairs) == list(all_at_once)
    for name, figures in pairs.items():
        for figure in ("params", "block_params", "perplexity", "kl", "tokens", "continuations"):
            assert figures[figure] == all_at_once[name][figure], (name, figure)
        assert figures["tokens_per_second"] > 0
