"""Whole runs on a pretend device that refuses float64, as Apple's GPUs do."""

import pytest
import torch

from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME
from tests.gpu.test_pipeline import FEW
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages


def test_float64_is_refused():
    with pretend_gpu(float64=False):
        there = torch.ones(2, device=NAME)
        for ask in (
            there.double,
            lambda: there.sum(dtype=torch.float64),
            lambda: there.to("cpu", torch.float64),
            lambda: torch.zeros(2, dtype=torch.float64, device=NAME),
            lambda: torch.ones(2, dtype=torch.float64).to(NAME),
        ):
            with pytest.raises(TypeError, match="doesn't support float64"):
                ask()
        assert there.cpu().double().sum() == 2


# GLM 4 has norms behind its modules, and Mixtral experts.
@pytest.mark.parametrize("model_type", ["glm4", "mixtral"])
def test_a_run_gives_the_results_of_the_cpu(model_type, make_run, tmp_path):
    few = (*FEW, "budget.tolerance=0.1", "units.mlp_multiple=4", "search.generations=1")
    model = tiny_checkpoint(tmp_path / "model", model_type, num_hidden_layers=2)
    on_cpu = run_stages(make_run(model, tmp_path / "cpu", *few), "evaluate")
    with pretend_gpu(float64=False) as gpu:
        there = run_stages(make_run(model, tmp_path / NAME, *few), "evaluate")
    assert not gpu.tally.mixes
    assert sum(gpu.tally.kernels.values()) > 1000, "it ran there"
    assert not gpu.tally.inside("database/elimination.py")["kernels"], "orders are the CPU's"
    assert there.search.allocation == on_cpu.search.allocation
    assert there.search.record["kl"] == pytest.approx(on_cpu.search.record["kl"], rel=1e-3)
    assert there.refit.record["kl_after"] == pytest.approx(on_cpu.refit.record["kl_after"], rel=1e-3)
