"""Models that don't fit side by side are measured in pairs, with the same figures."""

import shutil
from pathlib import Path

from darwinlm.artifact import read_json
from darwinlm.pipeline import run_stages
from darwinlm.stages import evaluate
from darwinlm.stages.evaluate import together


def test_pairs_where_there_is_no_room_for_all() -> None:
    sizes = {"dense": 10, "uniform": 5, "stitched": 6}
    assert together(sizes, None) == together(sizes, 21) == [["dense", "uniform", "stitched"]]
    assert together(sizes, 20) == [["dense", "uniform"], ["dense", "stitched"]]


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
