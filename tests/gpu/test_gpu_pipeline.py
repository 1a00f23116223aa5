"""Whole runs on the pretend device: no mixed devices, the results of the CPU, and no waiting in inner loops."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from darwinlm.formats.transformers import saved
from darwinlm.pipeline import REPORT
from darwinlm.recipe import load_recipe
from darwinlm.runs.demo_recipe import SETTINGS as DEMO
from darwinlm.runs.opening import open_run
from darwinlm.runtime import memory
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.memory import CACHES
from darwinlm.steps.database import elimination, store
from darwinlm.steps.refit import strength as refit_strength
from tests.gpu.device import pretend_gpu
from tests.gpu.rules import NAME
from tests.gpu.tally import Tally
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages

FEW = ("compute.batch_tokens=1024", "search.generations=2", "units.mlp_multiple=16")
"""Small amounts, since an operation on the pretend device takes half a millisecond."""

CASES = {
    "paper": (
        "llama",
        (
            "preset=paper",
            "search.rounds=[{tokens: 64, survivors: 2, training_tokens: 64}, "
            "{tokens: 128, survivors: 1, training_tokens: 128}]",
        ),
    ),
    "mixture": ("mixtral", ("budget.tolerance=0.1", "units.mlp_multiple=4")),
    "biases": ("qwen2", ()),
}
"""Without plain Llama, of which the demo is made below, and which the lab's comparison has (lab/tests/test_gpu.py)."""


@dataclass
class Compared:
    """One recipe on both devices.

    Attributes:
        cpu, device: what the stages found.
        tally: What the device counted.
        left: Bytes in use on it after the last stage, without a collection of garbage.
    """

    cpu: SimpleNamespace
    device: SimpleNamespace
    tally: Tally
    left: int


@pytest.fixture(scope="module", autouse=True)
def one_strength():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refit_strength, "STRENGTHS", (1.0,))
        yield


@contextmanager
def without_collections() -> Iterator[None]:
    """Garbage in cycles stays: on a GPU it may stay for long, and nobody collects it when memory is full."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(scope="module", params=CASES)
def compared(request, make_run, tmp_path_factory) -> Compared:
    model_type, assignments = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_checkpoint(folder / "model", model_type, num_hidden_layers=2)
    on_cpu = run_stages(make_run(model, folder / "cpu", *FEW, *assignments), "refit")
    with pretend_gpu() as gpu, without_collections():
        there = run_stages(make_run(model, folder / NAME, *FEW, *assignments), "refit")
        left = gpu.allocated
    return Compared(on_cpu, there, gpu.tally, left)


def test_nothing_mixes_devices(compared):
    assert not compared.tally.mixes
    assert sum(compared.tally.kernels.values()) > 1000, "it ran there"


def test_a_finished_stage_leaves_the_memory_to_the_next_one(compared):
    assert compared.left == 0


def test_the_results_are_the_cpus(compared):
    ours, theirs = compared.device.search, compared.cpu.search
    assert ours.allocation == theirs.allocation
    assert ours.record["kl"] == pytest.approx(theirs.record["kl"], rel=1e-4)
    if compared.cpu.refit is not None:
        for name in ("kl_before", "kl_after"):
            assert compared.device.refit.record[name] == pytest.approx(compared.cpu.refit.record[name], rel=1e-4)


def test_no_factor_is_read_twice(compared):
    reader = compared.device.database.reader
    assert 0 < reader.reads <= len(reader.modules)


def test_factors_that_do_not_fit_on_the_device_stay_in_main_memory(make_run, tmp_path, monkeypatch):
    model = tiny_checkpoint(tmp_path / "model", "llama", num_hidden_layers=2)
    database = run_stages(make_run(model, tmp_path / "out", *FEW), "database").database
    whole = database.reader
    monkeypatch.setitem(CACHES, "factors", 0.0)
    with pretend_gpu():
        none = store.DatabaseReader(whole.folder, whole.checkpoint, whole.units, device=torch.device(NAME))
        for _ in range(3):
            for module in none.modules:
                level = module.levels[len(module.levels) // 2]
                found, expected = (each.kept(module.block, module.kind, level) for each in (none, whole))
                assert found.weight.device.type == NAME
                torch.testing.assert_close(found.weight.cpu(), expected.weight)
                assert torch.equal(found.columns, expected.columns)
    assert none.reads == len(none.modules)


# GLM 4 has norms behind its modules, and Mixtral experts.
@pytest.mark.parametrize("model_type", ["glm4", "mixtral"])
def test_a_device_without_float64_gives_the_results_of_the_cpu(model_type, make_run, tmp_path):
    few = (*FEW, "budget.tolerance=0.1", "units.mlp_multiple=4", "search.generations=1")
    model = tiny_checkpoint(tmp_path / "model", model_type, num_hidden_layers=2)
    on_cpu = run_stages(make_run(model, tmp_path / "cpu", *few), "evaluate")
    with pretend_gpu(float64=False) as gpu:
        there = run_stages(make_run(model, tmp_path / NAME, *few), "evaluate")
    assert not gpu.tally.mixes
    assert sum(gpu.tally.kernels.values()) > 1000, "it ran there"
    assert not gpu.tally.inside(elimination)["kernels"], "orders are the CPU's"
    assert there.search.allocation == on_cpu.search.allocation
    assert there.search.record["kl"] == pytest.approx(on_cpu.search.record["kl"], rel=1e-3)
    assert there.refit.record["kl_after"] == pytest.approx(on_cpu.refit.record["kl_after"], rel=1e-3)


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
    recipe = load_recipe(None, (), DEMO | LITTLE | inputs)
    if staying == "block by block":
        monkeypatch.setitem(memory.CACHES, "blocks", 0.0)
    with pretend_gpu() as gpu:
        run = open_run(recipe, tmp_path / "out", Reporter(quiet=True))
        assert str(run.context.device) == "cuda:0"
        report = run_stages(run, REPORT).report
    assert sum(gpu.tally.kernels.values()) > 1000, "it ran there"
    assert not gpu.tally.mixes
    assert gpu.tally.inside(saved)["kernels"], "the saved model is checked there"
    assert report.saved.kl is not None
    assert (tmp_path / "out" / "model" / "config.json").is_file()
