"""What `darwinlm.prune` hands back: the model, its answers, its allocation, and a few lines for a notebook."""

import sys
from pathlib import Path

import pytest
import torch

from darwinlm.report.summary import read_summary
from darwinlm.runs.prune import Result
from darwinlm.runtime.errors import ModelError, RecipeError


@pytest.fixture
def result(finished_llama: Path) -> Result:
    """Of a finished run."""
    summary = read_summary(finished_llama / "summary.json")
    return Result(finished_llama, finished_llama / "model", finished_llama / "report.html", summary)


def test_the_model_is_loaded_and_answers(result: Result) -> None:
    model, tokenizer = result.load(dtype="float32")
    assert sum(parameter.numel() for parameter in model.parameters()) == result.summary.saved.params
    assert next(model.parameters()).dtype == torch.float32
    answer = result.generate("the river", max_tokens=5, temperature=0)
    assert tokenizer.vocab_size > 0
    first = result.generate("the river", max_tokens=1, temperature=0)
    assert answer.startswith(first.rstrip("\ufffd")), "a token may be a part of a character"
    assert answer == result.generate("the river", max_tokens=5, temperature=0)


def test_loading_shows_no_bars_and_leaves_the_users_setting(
    result: Result, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging

    # As without the environment variable that tests set.
    monkeypatch.setattr(sys.modules["huggingface_hub.utils.tqdm"], "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    result.load(dtype="float32")
    assert "Loading weights" not in capfd.readouterr().err
    assert logging.is_progress_bar_enabled()


def test_a_notebook_shows_a_few_lines(result: Result) -> None:
    html = result._repr_html_()
    assert len(html) < 1000
    assert str(result.report) in html
    assert "<script" not in html
    assert len(repr(result)) < 500


def test_what_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="dtype int3: use auto"):
        result.load(dtype="int3")
    gone = Result(tmp_path, tmp_path / "model", tmp_path / "report.html", result.summary)
    with pytest.raises(ModelError, match="there is no model"):
        gone.load()
