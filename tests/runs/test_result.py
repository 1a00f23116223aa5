"""What `darwinlm.prune` hands back, and a model that is loaded from it."""

from pathlib import Path

import pytest
import torch
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
    with pytest.raises(ArtifactError, match=r"summary\.json"):
        _ = gone.summary
