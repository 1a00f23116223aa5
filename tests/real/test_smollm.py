"""The demo's model, SmolLM2-135M, with a smaller recipe: minutes on two cores. The order of results, and llama.cpp."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.tiny.stages import run_stages
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.formats.resolve import resolve_model
from darwinlm.model.surgery.smaller_model import block_parameters
from darwinlm.runs.demo_recipe import CHATS, demo_model, demo_recipe
from darwinlm.runs.exporting import export_model
from darwinlm.runs.opening import open_run
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import DataError, MissingExtraError, ModelError
from darwinlm.steps.text import text_settings

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

SMALLER = (
    f"text.source={CHATS}",
    "text.calibration_tokens=4096",
    "text.evaluation_tokens=2048",
    "refit.tokens=2048",
    "search.generations=2",
    "search.offspring=4",
    "search.rounds=[{tokens: 512, survivors: 2}, {tokens: 1024, survivors: 1}]",
    "recovery.tokens=2048",
    "recovery.batch_tokens=1024",
    "budget.keep=50%",
)
MODELS = ("dense", "uniform", "stitched", "recovered")
UNIFORM, RECOVERED = 1.75, 1.36
"""Held-out KL of this recipe. No seed of the search changes that of the uniform cut; the other is of seed 0."""
FIGURES = ("params", "block_params", "bytes", "perplexity", "kl")


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> tuple[SimpleNamespace, Path]:
    """A run that keeps half of the model: its results, and its output folder."""
    out = tmp_path_factory.mktemp("half") / "out"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text_settings, "LEAST_FOR_ANSWERS", 1 << 20)  # tiny models write chats in other tests
            run = open_run(demo_recipe(SMALLER), out, Reporter(quiet=True))
            return run_stages(run, "report"), out
    except (ModelError, DataError, MissingExtraError) as missing:
        pytest.skip(str(missing))


def test_half_of_smollm2(half):
    summary, out = half[0].report, half[1]
    models = summary.models
    assert tuple(models) == MODELS
    for name, figures in models.items():
        assert all(getattr(figures, figure) >= 0 for figure in FIGURES), name
        assert figures.params > figures.block_params > 0
    for figures in (models["dense"], models[MODELS[-1]]):
        assert figures.tokens_per_second > 0
        assert all(text.strip() for text in figures.continuations), "it has nothing to say"

    # Held-out text decides; nothing was chosen by it. With so little text, refit and training change hardly anything.
    assert models["dense"].kl == pytest.approx(0, abs=1e-4)
    for figure in ("perplexity", "kl"):
        dense, uniform, *searched = (getattr(models[name], figure) for name in MODELS)
        assert dense < min(searched), figure
        assert max(searched) < uniform, figure

    assert models["uniform"].kl == pytest.approx(UNIFORM, rel=0.06)
    assert models["recovered"].kl < 1.1 * RECOVERED  # with twice the text, three seeds were within 2 % of each other

    budget = summary.budget
    assert 0 <= budget.unused <= 0.005
    assert budget.block_params <= 0.5 * budget.dense_block_params
    assert models["uniform"].block_params <= budget.upper
    assert models["stitched"].bytes < 0.75 * models["dense"].bytes

    for name in ("report.html", "summary.json"):
        assert (out / name).stat().st_size > 1000
    assert json.loads((out / "summary.json").read_text())["models"].keys() == models.keys()

    folder = out / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == models["recovered"].params
    assert block_parameters(model, "model.layers") == budget.block_params
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("Water boils when", return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, min_new_tokens=8, max_new_tokens=8)
    assert tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@torch.no_grad()
def test_it_is_as_good_on_held_out_text_in_llama_cpp(half, tmp_path: Path):
    pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")
    report = export_model(half[1] / "model", tmp_path / "half.gguf", quantisation="f16")
    assert report.details["architecture"] == "deci"
    tokens = half[0].text["evaluation"].tokens[:2, :256]
    with EngineProcess("llama.cpp", tmp_path / "half.gguf", context=256) as engine:
        found = torch.stack([torch.from_numpy(engine.logits(row.tolist())) for row in tokens])
    expected = AutoModelForCausalLM.from_pretrained(half[1] / "model", dtype=torch.float32)(tokens).logits
    ours, theirs = (cross_entropy(each[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()) for each in (found, expected))
    assert float(ours.exp()) == pytest.approx(float(theirs.exp()), rel=0.01)


def test_the_tokenizer_of_the_file_splits_text_as_llama_cpp_does(tmp_path: Path):
    pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")
    try:
        dense = resolve_model(str(demo_model()), tmp_path / "dense")
    except (ModelError, MissingExtraError) as missing:
        pytest.skip(str(missing))
    chats = [json.loads(line)["messages"] for line in CHATS.read_text(encoding="utf-8").splitlines()]
    texts = [*(message["content"] for chat in chats for message in chat), "a  12 and\n\n  3400 or x7\t 8"]
    assert sum(text.count(f" {digit}") for text in texts for digit in range(10)) > 100
    tokenizer = dense.tokenizer()
    with EngineProcess("llama.cpp", demo_model(), context=256) as engine:
        for text in texts:
            assert engine.tokenize(text) == tokenizer(text)["input_ids"], text
