"""What `darwinlm.prune` hands back: the model, its answers, its allocation, and a few lines for a notebook."""

from pathlib import Path

import pytest
import torch

import darwinlm
from darwinlm.runs.prune import Result
from darwinlm.runtime.errors import ArtifactError, ModelError, RecipeError


@pytest.fixture
def result(finished_llama: Path) -> Result:
    """Of a finished run."""
    return Result(finished_llama)


def test_the_model_is_loaded_once_and_answers(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = result.load(dtype="float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    assert sum(parameter.numel() for parameter in model.parameters()) == result.summary.saved.params
    assert next(model.parameters()).dtype == torch.float32
    answer = result.generate("the river", max_tokens=5, temperature=0)
    assert tokenizer.vocab_size > 0
    monkeypatch.setattr("darwinlm.engines.opened.open_model", None)
    assert answer == result.generate("the river", max_tokens=5, temperature=0)
    assert loaded.generate("the river", max_tokens=5, temperature=0)


def test_a_loaded_run_is_measured_against_its_dense_model_and_exported(
    result: Result, tiny_text_file: Path, tmp_path: Path
) -> None:
    loaded = darwinlm.load(result.folder, dtype="float32")
    (text,) = loaded.evaluate(text=str(tiny_text_file), sequence_length=64).texts
    assert text["kl"] > 0
    (alone,) = darwinlm.load(result.model, dtype="float32").evaluate(text=str(tiny_text_file), sequence_length=64).texts
    assert (alone["perplexity"], alone.get("kl")) == (pytest.approx(text["perplexity"]), None)


def test_figures_have_the_names_of_the_tables(result: Result) -> None:
    assert list(result.models)[:3] == ["dense", "uniform, same budget", "searched"]
    assert result.models["dense"].kl == pytest.approx(0, abs=1e-6)


def test_what_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="dtype int3: use auto"):
        result.load(dtype="int3")
    gone = Result(tmp_path)
    with pytest.raises(ModelError, match="holds no model"):
        gone.load()
    with pytest.raises(ArtifactError, match=r"summary\.json"):
        _ = gone.summary
