"""The check that ends an export sees what is planted, names the layer, and leaves nothing behind."""

from dataclasses import replace

import pytest
import torch
from tests.tiny.pruned import pruned_checkpoint

from darwinlm.formats.gguf import checked_file as gguf_export
from darwinlm.formats.gguf import tensors
from darwinlm.formats.gguf.engine import ENGINES
from darwinlm.formats.logits_check import compare_logits
from darwinlm.model.quantisation import LLAMA_CPP
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.errors import ExportError, MissingExtraError

pytest.importorskip("cyllama", reason="comes with the extra gguf")

ROWS = {0: (2, 1, 96), 2: (4, 2, 64)}


@pytest.fixture
def without_the_library(monkeypatch):
    monkeypatch.setitem(ENGINES, LLAMA_CPP, replace(ENGINES[LLAMA_CPP], package="not_installed_here"))


def refused(tmp_path, model, *parts, **options):
    with pytest.raises(ExportError) as caught:
        export_model(model, tmp_path / "out.gguf", **options)
    for part in ("the export fails its check", *parts):
        assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def planted(monkeypatch, change):
    """Let the writer change one block's tensors."""
    original = tensors.block_tensors

    def wrong(reshaper, layout, target):
        return change(target.block, original(reshaper, layout, target))

    monkeypatch.setattr(tensors, "block_tensors", wrong)


@pytest.mark.parametrize("quantisation", ["f32", "f16", "q8_0", "q4_0"])
def test_a_missing_permutation(tmp_path, monkeypatch, quantisation):
    model = pruned_checkpoint(tmp_path / "model", "llama", ROWS)
    monkeypatch.setattr(tensors, "permute_rows", lambda tensor, *_: tensor)
    exact = "f16" if quantisation == "f16" else "f32"
    refused(tmp_path, model, f"its {exact} file in llama.cpp", quantisation=quantisation)


def test_a_tensor_that_is_not_written(tmp_path, monkeypatch):
    model = pruned_checkpoint(tmp_path / "model", "llama", ROWS)
    block = Reshaper.block

    def without(reshaper, target):
        return {name: tensor for name, tensor in block(reshaper, target).items() if name != "mlp.up_proj.weight"}

    monkeypatch.setattr(Reshaper, "block", without)
    refused(tmp_path, model, "Failed to load model")


@pytest.mark.parametrize(
    ("model_type", "bias"), [("qwen2", "attn_k.bias"), ("qwen2", "attn_v.bias"), ("llama", "ffn_down.bias")]
)
def test_a_dropped_bias(tmp_path, monkeypatch, model_type, bias):
    """Of the last block: attn_k.bias doesn't change a softmax, and so only shows with the rotary embedding."""
    more = {"mlp_bias": True} if model_type == "llama" else {}
    model = pruned_checkpoint(tmp_path / "model", model_type, ROWS, **more)
    planted(monkeypatch, lambda block, found: {k: v for k, v in found.items() if block != 2 or k != bias})
    refused(tmp_path, model, "its f16 file in llama.cpp", quantisation="f16")


def test_a_tensor_that_was_written_wrongly(tmp_path, monkeypatch):
    model = pruned_checkpoint(tmp_path / "model", "llama", ROWS)
    original = gguf_export.write_gguf

    def wrong(path, *rest):
        original(path, *rest)
        with path.open("r+b") as stream:
            stream.seek(-4096, 2)
            stream.write(bytes(4096))

    monkeypatch.setattr(gguf_export, "write_gguf", wrong)
    refused(tmp_path, model, "blk.2.", "more than rounding to", quantisation="q8_0")


def test_the_report_says_what_was_not_checked(tmp_path, without_the_library):
    model = pruned_checkpoint(tmp_path / "model", "llama", ROWS)
    with pytest.raises(MissingExtraError, match=r"checking the file in llama.cpp .--unchecked .*\[gguf\]'"):
        export_model(model, tmp_path / "m.gguf", quantisation="q8_0")
    report = export_model(model, tmp_path / "m.gguf", quantisation="q8_0", unchecked=True)
    assert report.comparisons == []
    assert "not checked in llama.cpp" in report.notes
    assert report.bytes == (tmp_path / "m.gguf").stat().st_size
    assert report.details["tensor_types"] == {"Q8_0": 23, "F32": 7}


@pytest.mark.parametrize("fault", ["one token differs", "all but a large one differ", "another shape", "NaN"])
def test_a_difference_of_few_tokens_and_a_small_one_of_most_are_seen(fault):
    right = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    right[0] *= 1e6
    left = right.clone()
    if fault == "another shape":
        left = left[:-1]
    elif fault == "NaN":
        left[7, 3] = torch.nan
    else:
        changed = slice(0, 1) if fault == "one token differs" else slice(1, None)
        left[changed] += 0.1 * right[changed].flip(-1)
    with pytest.raises(ExportError, match=r"the file and the model differ by .* in the logits"):
        compare_logits(("the model", right), ("the file", left), 1e-3)
    assert compare_logits(("the model", right), ("the file", right), 1e-3).relative == 0
