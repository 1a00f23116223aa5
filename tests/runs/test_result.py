"""What `darwinlm.prune` hands back, and a model that is loaded from it."""

from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.pruned import plain_checkpoint, word_tokenizer

import darwinlm
from darwinlm.runs.pruning import Result
from darwinlm.runtime.errors import ArtifactError, ModelError, RecipeError


@pytest.fixture
def result(finished_llama: Path) -> Result:
    """Of a finished run."""
    return Result(finished_llama)


def test_a_loaded_model_answers(result: Result) -> None:
    loaded = result.load(dtype="float32")
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == result.summary.saved.params
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert loaded.tokenizer.vocab_size > 0
    assert loaded.generate("the river", max_tokens=5, temperature=0)


def test_a_loaded_model_is_measured_and_exported(result: Result, tiny_text_file: Path, tmp_path: Path) -> None:
    loaded = darwinlm.load(result.folder, dtype="float32")
    (text,) = loaded.evaluate(texts=str(tiny_text_file), sequence_length=64).texts
    assert text["perplexity"] > 1
    other = darwinlm.load(plain_checkpoint(tmp_path / "model", "llama", tokenizer=word_tokenizer()), dtype="float32")
    report = other.export(tmp_path / "mine.gguf", unchecked=True)
    assert report.bytes == (tmp_path / "mine.gguf").stat().st_size


def test_what_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="dtype int3: use auto"):
        darwinlm.load(result.folder, dtype="int3")
    gone = Result(tmp_path)
    with pytest.raises(ModelError, match="holds no model"):
        darwinlm.load(gone.folder)
    with pytest.raises(ArtifactError, match="is not a run: give the output folder of darwinlm prune or recover"):
        _ = gone.summary


def test_a_run_that_ended_early_is_not_damaged(tiny_llama: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    """Several sources of text as a list, and a preset, as the function takes them."""
    few = (*SETTINGS, "text.calibration_tokens=512", "text.evaluation_tokens=128", "refit.tokens=0")
    result = darwinlm.prune(
        tiny_llama,
        tmp_path / "out",
        keep=0.6,
        preset="quick",
        text=[tiny_text_file, str(tiny_text_file)],
        until="text",
        assignments=few,
        reporter=darwinlm.Reporter(quiet=True),
    )
    with pytest.raises(ArtifactError, match=r"isn't finished \(done: text\): rerun its command to resume"):
        _ = result.summary
