"""The four verbs of every format, and of a new one."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.formats.gguf.conftest import engine_here  # noqa: F401 - llama.cpp in the tests' own process
from tests.tiny.pruned import MIXED, any_checkpoint, plain_checkpoint

from darwinlm.formats.all_formats import FORMATS, format_of
from darwinlm.formats.format import Format, WriteOptions, check_target
from darwinlm.formats.gguf.gguf_format import GGUF
from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.resolve import is_converted, memory_to_read
from darwinlm.formats.transformers.transformers_format import TRANSFORMERS
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import CheckpointError, ExportError

pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint.open(any_checkpoint(tmp_path / "model", "llama", MIXED))


def written(kind: Format, checkpoint: Checkpoint, folder, **options):
    out = folder / ("out" if kind.folder else f"out.{kind.name}")
    return out, kind.write(checkpoint, out, WriteOptions(**options))


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_found_predicted_and_checked(tmp_path, checkpoint, name):
    kind = FORMATS[name]
    options = {"quantisation": "q8_0"} if kind.types else {}
    out, report = written(kind, checkpoint, tmp_path, **options)
    assert format_of(out) is kind
    assert kind.wrote(out)
    assert kind.refusal(checkpoint) is None
    predicted = kind.predict(checkpoint)[options.get("quantisation", "float32")]
    assert report.bytes == pytest.approx(predicted, rel=0.02, abs=8192)
    assert kind.check(checkpoint, out).files == report.files
    with pytest.raises(ExportError, match="exists: choose another path"):
        check_target(kind, out)
    check_target(kind, out, overwrite=True)


def test_equal_layers_are_read_back_from_every_format(tmp_path):
    checkpoint = Checkpoint.open(plain_checkpoint(tmp_path / "model", "llama"))
    for kind in FORMATS.values():
        out, _ = written(kind, checkpoint, tmp_path, **({"quantisation": "f32"} if kind.types else {}))
        again = kind.read(out, "its name", tmp_path / "work")
        assert again.source == "its name"
        for name, tensor in checkpoint.read().items():
            assert torch.equal(again.read(name)[""].float(), tensor.float()), (kind.name, name)
        assert kind.describe(out, str(out)).n_blocks == checkpoint.n_blocks
        assert is_converted(str(out)) == (memory_to_read(str(out)) > 0) == (kind is GGUF)


def test_a_changed_file_fails_its_check(tmp_path, checkpoint):
    out, _ = written(GGUF, checkpoint, tmp_path, quantisation="f32", unchecked=True)
    place = read_header(out).stored["output.weight"].data_offset
    content = bytearray(out.read_bytes())
    content[place : place + 64] = bytes(64)
    out.write_bytes(content)
    with pytest.raises(ExportError, match=r"fails its check: output\.weight differs"):
        GGUF.check(checkpoint, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out.gguf", "out.gguf.export.json"]


def test_a_changed_folder_fails_its_check(tmp_path, checkpoint):
    out, report = written(TRANSFORMERS, checkpoint, tmp_path, unchecked=True)
    assert report.notes == ["not checked in transformers"]
    (shard,) = out.glob("*.safetensors")
    tensors = load_file(shard)
    tensors["model.norm.weight"] += 1
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"differs from the one in memory in model\.norm\.weight"):
        TRANSFORMERS.check(checkpoint, out)


def test_what_a_format_does_not_hold(tmp_path):
    checkpoint = Checkpoint.open(plain_checkpoint(tmp_path / "model", "vaultgemma", layer_types=["full_attention"] * 3))
    assert GGUF.refusal(checkpoint) == "llama.cpp has no architecture for this family"
    assert GGUF.predict(checkpoint) == {}
    assert GGUF.largest(checkpoint, 10**9) is None
    assert TRANSFORMERS.refusal(checkpoint) is None


def test_the_largest_file_within_a_bound(checkpoint):
    sizes = GGUF.predict(checkpoint)
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)
    name, size = GGUF.largest(checkpoint, sizes["q4_k_m"])
    assert size == sizes[name] == sizes["q4_k_m"]
    assert GGUF.largest(checkpoint, min(sizes.values()) - 1) is None


def test_places_that_are_of_another_kind(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(ExportError, match="is a file: this format needs a folder"):
        check_target(TRANSFORMERS, tmp_path / "file")
    with pytest.raises(ExportError, match=r"is a folder: this format is one file, such as .*model\.gguf"):
        check_target(GGUF, tmp_path)
    with pytest.raises(ExportError, match="exists and is not a GGUF file"):
        check_target(GGUF, tmp_path / "file", overwrite=True)
    assert format_of(tmp_path / "file") is None
