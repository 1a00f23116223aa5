"""The demo's model, SmolLM2-135M, with a smaller recipe: minutes on two cores, and the order of results that counts."""

import json
import os
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from darwinlm.console import Reporter
from darwinlm.errors import DataError, MissingExtraError, ModelError
from darwinlm.pipeline import run_stages
from darwinlm.run import Run
from darwinlm.runs.demo import demo_recipe
from darwinlm.surgery.stitch import block_parameters

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]

SMALLER = (
    "text.calibration_tokens=8192",
    "text.validation_tokens=2048",
    "text.evaluation_tokens=4096",
    "refit.tokens=8192",
    "search.generations=3",
    "search.offspring=6",
    "search.stages=[{tokens: 512, survivors: 2}, {tokens: 1024, survivors: 1}]",
    "recovery.tokens=4096",
    "recovery.batch_tokens=1024",
    "evaluation.prompts=['The capital of France is']",
)
MODELS = ("dense", "uniform", "stitched", "refit", "recovered")
FIGURES = ("params", "block_params", "bytes", "perplexity", "kl", "tokens_per_second")


@pytest.fixture
def all_cores():
    """A real model is the one thing here that more than one thread makes faster."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


def test_half_of_smollm2(all_cores, tmp_path: Path):
    try:
        recipe = demo_recipe(SMALLER, full=True)
    except (ModelError, DataError) as missing:
        pytest.skip(str(missing))
    run = Run(recipe, tmp_path / "out", Reporter(Console(quiet=True)))
    try:
        summary = run_stages(run, "report").report
    except MissingExtraError as missing:
        pytest.skip(str(missing))

    models = summary.models
    assert tuple(models) == MODELS
    for name, figures in models.items():
        assert all(getattr(figures, figure) >= 0 for figure in FIGURES), name
        assert figures.tokens_per_second > 0
        assert figures.params > figures.block_params > 0
        assert all(text.strip() for text in figures.continuations), f"{name} has nothing to say"

    # Held-out text decides; nothing was chosen by it. With so little text, refit and training change hardly anything.
    assert models["dense"].kl == pytest.approx(0, abs=1e-4)
    for figure in ("perplexity", "kl"):
        dense, uniform, *searched = (getattr(models[name], figure) for name in MODELS)
        assert dense < min(searched), figure
        assert max(searched) < uniform, figure

    budget = summary.budget
    assert 0 <= budget.unused <= 0.005
    assert budget.block_params <= 0.5 * budget.dense_block_params
    assert models["uniform"].block_params <= budget.upper
    assert models["refit"].bytes < 0.75 * models["dense"].bytes

    for name in ("report.html", "summary.json"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["models"].keys() == models.keys()

    folder = tmp_path / "out" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == models["recovered"].params
    assert block_parameters(model, "model.layers") == budget.block_params
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Water boils when", return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, min_new_tokens=8, max_new_tokens=8)
    assert tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
