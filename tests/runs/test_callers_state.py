"""Python code may be in any state of PyTorch, and give paths as it likes: the result is the same, or one line."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS

import darwinlm
from darwinlm.runtime.errors import ArtifactError, RecipeError
from darwinlm.runtime.torch_state import in_usual_state


@pytest.fixture
def odd_state(monkeypatch):
    """Inference mode, autocast, another default device and type, and products that aren't exact."""
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        stack.enter_context(torch.device("meta"))
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        yield
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_default_device().type == "meta"
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(precision)


@pytest.mark.usefixtures("odd_state")
def test_a_run_is_the_same(tiny_llama: Path, tiny_text_file: Path, finished_llama: Path, tmp_path: Path) -> None:
    darwinlm.prune(
        tiny_llama,
        tmp_path / "out",
        keep=0.6,
        text=tiny_text_file,
        assignments=iter(SETTINGS),
        reporter=darwinlm.Reporter(quiet=True),
        until="export",
    )
    for name in ("stages/database/block_0003.safetensors", "model/model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (finished_llama / name).read_bytes(), name


def test_a_model_answers_the_same(tiny_llama: Path, request: pytest.FixtureRequest) -> None:
    answer = darwinlm.load(tiny_llama, dtype="float32").generate("the river", max_tokens=8)
    request.getfixturevalue("odd_state")
    assert darwinlm.load(tiny_llama, dtype="float32").generate("the river", max_tokens=8) == answer


def test_the_callers_state_comes_back_after_an_error() -> None:
    @in_usual_state
    def fails() -> None:
        assert torch.is_grad_enabled()
        raise KeyError

    with torch.no_grad():
        with pytest.raises(KeyError):
            fails()
        assert not torch.is_grad_enabled()


def test_what_is_no_value_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    for out in (None, "", 3):
        with pytest.raises(ArtifactError, match=r"out is .*: give the folder to write to"):
            darwinlm.prune(tiny_llama, out, keep=0.6)
        with pytest.raises(ArtifactError, match=r"out is .*: give the folder to write to"):
            darwinlm.recover(tiny_llama, out, tokens=100)
    with pytest.raises(RecipeError, match="--max-tokens 0: must be 1 or more"):
        darwinlm.load(tiny_llama).generate("the river", max_tokens=0)


def test_paths_are_texts_too(tiny_llama: Path, tiny_text_file: Path, tmp_path: Path) -> None:
    assert darwinlm.plan(tiny_llama, keep=0.6).problem is None
    few = {"tokens": 256, "sequence_length": 64}
    measured = darwinlm.load(tiny_llama, dtype="float32").evaluate(texts=tiny_text_file, against=tiny_llama, **few)
    assert measured.texts[0]["source"] == str(tiny_text_file)
    assert darwinlm.load_recipe(None, (), {"text.source": str(tiny_text_file)}).text.source == str(tiny_text_file)
