"""Tensors of GGUF files are read back as the model has them, for every family that is written."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats.gguf.test_gguf_families import CASES, STOCK
from tests.formats.gguf.test_gguf_read_back import CASES as ALL_CASES
from tests.formats.gguf.test_gguf_read_back import READ
from tests.tiny.pruned import any_checkpoint, plain_checkpoint
from transformers import AutoModelForCausalLM

from darwinlm.formats.gguf import numbers, read
from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.resolve import resolve_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.artifact import file_digest
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.tensor_stream import write_float32

WRITTEN = [case for case, (model_type, architecture, *_) in CASES.items() if STOCK[model_type].name == architecture]
"""Those with the family's own architecture."""
ROUNDED = ("norm", "A_log")
"""Parts of names of what is stored with 1 added, or as another function of it."""
SCALED = {"gemma2": "q_proj"}
"""The same for what is stored with a factor."""


@pytest.fixture
def unchecked(monkeypatch):
    """Exports of a file that llama.cpp doesn't check, which other tests let it do."""
    monkeypatch.setattr("darwinlm.formats.gguf.checked_file._check", lambda job, path: None)


def file_of(folder, quantisation="f32"):
    export_model(folder, folder.parent / "m.gguf", quantisation=quantisation, overwrite=True)
    return folder.parent / "m.gguf"


@pytest.mark.parametrize("case", WRITTEN)
def test_what_is_written_is_read(tmp_path, unchecked, case):
    model_type, _, rows, overrides = CASES[case]
    original = Checkpoint.open(any_checkpoint(tmp_path / "model", model_type, rows, **overrides))
    tensors = read._tensors(read_header(file_of(original.folder)), original.config)
    tensors.check()
    expected = original.read()
    assert tensors.shapes.keys() == expected.keys() - original.tied.keys()
    for name in tensors.shapes:
        found = torch.cat(list(tensors.parts(name))) if expected[name].ndim else next(iter(tensors.parts(name)))
        rounded = any(part in name for part in (*ROUNDED, SCALED.get(case, "norm")))
        torch.testing.assert_close(found, expected[name], rtol=1e-5 if rounded else 0, atol=1e-6 if rounded else 0)


@pytest.mark.filterwarnings("ignore")  # transformers finds tiny models' numbers odd
@pytest.mark.parametrize("quantisation", ["f32", "q8_0"])
@pytest.mark.parametrize("case", READ)
def test_numbers_are_those_that_transformers_reads(tmp_path, unchecked, case, quantisation):
    """Bit by bit: transformers holds the whole model in float32."""
    model_type, _, rows, overrides = ALL_CASES[case]
    folder = any_checkpoint(tmp_path / "model", model_type, rows, **overrides)
    if case == "qwen3_5_moe" and quantisation == "q8_0":
        pytest.skip("its rows aren't whole blocks")
    file = file_of(folder, quantisation)
    ours = resolve_model(str(file), tmp_path / "work")
    (tmp_path / "alone").mkdir()
    file.rename(tmp_path / "alone" / "m.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "alone", gguf_file="m.gguf", config=ours.config, dtype=torch.float32
    )
    read_back = ours.read(dtype=torch.float32)
    for name, tensor in theirs.named_parameters():
        assert torch.equal(read_back[name], tensor), name


def test_numbers_are_read_in_parts_by_threads(tmp_path, unchecked, monkeypatch):
    file = file_of(plain_checkpoint(tmp_path / "model", "llama"), "q4_0")
    whole = resolve_model(str(file), tmp_path / "whole").read()
    monkeypatch.setattr(numbers, "AT_ONCE", 100)
    monkeypatch.setattr("darwinlm.formats.gguf.file_tensors.WEIGHTS_AT_ONCE", 200)
    parts = resolve_model(str(file), tmp_path / "parts").read()
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


@pytest.mark.parametrize("rows", [slice(None), slice(3, 40)])
def test_a_vector_may_be_of_any_type(tmp_path, rows):
    gguf = pytest.importorskip("gguf")
    vector = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    stored = vector.view(torch.uint8).numpy()
    writer.add_tensor("output_norm.weight", stored, raw_dtype=gguf.GGMLQuantizationType.BF16)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    (tensor,) = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    found = numbers.read_numbers(tmp_path / "m.gguf", tensor, (64,), rows)
    assert torch.equal(found, vector.float()[rows])


def test_a_large_model_has_several_files(tmp_path, unchecked, monkeypatch):
    """Linux maps no file that is larger than all main memory."""
    file = file_of(plain_checkpoint(tmp_path / "model", "llama"), "q4_0")
    whole = resolve_model(str(file), tmp_path / "whole").read()
    monkeypatch.setattr(read, "SHARD", 100_000)
    parts = resolve_model(str(file), tmp_path / "parts")
    shards = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(shards) > 3
    assert max(shard.stat().st_size for shard in shards) < 105_000
    assert all(torch.equal(tensor, whole[name]) for name, tensor in parts.read().items())
    assert parts.read().keys() == whole.keys()


def test_a_file_without_a_tensor_or_with_another_shape_is_refused_before_anything_is_written(tmp_path, unchecked):
    file = file_of(plain_checkpoint(tmp_path / "model", "llama"))
    header = read_header(file)
    config = Checkpoint.open(tmp_path / "model").config
    name = "blk.1.ffn_down.weight"
    lacking = replace(header, tensors={each: shape for each, shape in header.tensors.items() if each != name})
    with pytest.raises(CheckpointError, match=rf"it lacks the tensor {name}, of which model.layers.1.mlp.down_proj"):
        read._tensors(lacking, config).check()
    wider = replace(header, tensors=header.tensors | {name: (64, 97)})
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.down_proj.weight would be 64 x 97 instead of 64 x"):
        read._tensors(wider, config).check()
    broken = replace(header, tensors=header.tensors | {"blk.0.attn_q.weight": (127, 64)})
    with pytest.raises(CheckpointError, match=r"model.layers.0.self_attn.q_proj.weight can't be made of its tensors"):
        read._tensors(broken, config).check()
    more = replace(header, tensors=header.tensors | {"blk.0.attn_sinks.weight": (4,)})
    with pytest.raises(CheckpointError, match=r"also holds the tensor blk.0.attn_sinks.weight, which such a model"):
        read._tensors(more, config).check()


def test_a_file_that_vanishes_while_it_is_read(tmp_path, unchecked):
    file = file_of(plain_checkpoint(tmp_path / "model", "llama"))
    header = read_header(file)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"can't be read any more .*: bring back its disk or folder"):
        header.numbers("output_norm.weight")


def test_a_number_that_is_not_finite_leaves_nothing_behind(tmp_path, unchecked):
    folder = plain_checkpoint(tmp_path / "model", "llama")
    file = file_of(folder)
    stored = read_header(file).stored["blk.2.ffn_up.weight"]
    with file.open("r+b") as stream:
        stream.seek(int(stored.data_offset) + 40)
        stream.write(b"\xff\xff\xff\x7f")
    with pytest.raises(CheckpointError, match=r"m\.gguf: the tensor model.layers.2.mlp.up_proj.weight holds numbers"):
        resolve_model(str(file), tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_a_stream_of_tensors_is_the_file_of_safetensors(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {"b.ü": torch.randn(5, 3, generator=generator), "a": torch.randn(7, generator=generator)}
    tensors |= {"c": torch.tensor(2.0), "empty": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_float32(
        tmp_path / "ours", shapes, lambda name: tensors[name].split(2) if tensors[name].ndim else [tensors[name]]
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert load_file(tmp_path / "ours").keys() == tensors.keys()
    assert file_digest(tmp_path / "ours") == file_digest(tmp_path / "theirs"), "it was noted rightly"
