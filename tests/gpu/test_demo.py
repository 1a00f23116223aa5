"""The demo's settings on the pretend GPU that `compute.device=auto` finds, from the text to the report."""

import pytest

from darwinlm.pipeline import REPORT, open_run
from darwinlm.recipe import load_recipe
from darwinlm.runs.demo import QUICK
from darwinlm.runtime import memory
from darwinlm.runtime.console import Reporter
from tests.gpu.device import pretend_gpu
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages

LAYERS = 2
LITTLE = {
    "text.sequence_length": 64,
    "text.calibration_tokens": 1024,
    "text.evaluation_tokens": 512,
    "refit.tokens": 1024,
    "recovery.tokens": 1024,
    "recovery.batch_tokens": 512,
    "units.mlp_multiple": 16,
    "budget.tolerance": 0.1,
}
"""Less text, since an operation on the pretend device takes half a millisecond, and a refit."""


@pytest.mark.parametrize("staying", ["resident", "block by block"])
def test_the_demo_runs_from_the_text_to_the_report(staying, tiny_text_file, tmp_path, monkeypatch):
    model = tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=LAYERS)
    inputs = {"model": str(model), "text.source": str(tiny_text_file)}
    recipe = load_recipe(None, (), QUICK | LITTLE | inputs)
    if staying == "block by block":
        monkeypatch.setitem(memory.CACHES, "blocks", 0.0)
    with pretend_gpu() as gpu:
        run = open_run(recipe, tmp_path / "out", Reporter(quiet=True))
        assert str(run.context.device) == "cuda:0"
        report = run_stages(run, REPORT).report
    assert sum(gpu.tally.kernels.values()) > 1000, "it ran there"
    assert not gpu.tally.mixes
    assert report.saved.kl is not None
    assert (tmp_path / "out" / "model" / "config.json").is_file()
