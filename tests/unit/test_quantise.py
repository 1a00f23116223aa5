"""Tensors in the element types of GGUF files, rounded by llama.cpp's own quantiser."""

import numpy as np
import pytest
import torch

from darwinlm.engines import process
from darwinlm.gguf.quantise import TYPES, Scratch, dequantise, rounded, roundings, types_for
from darwinlm.gguf.sizes import BYTES
from darwinlm.runtime.errors import EngineError, MissingExtraError

gguf = pytest.importorskip("gguf", reason="the extra gguf")

SHAPES = {"wide": (6, 512), "narrow": (5, 96), "experts": (3, 4, 256), "odd": (4, 40)}
ERRORS = {
    "Q2_K": 0.4, "Q3_K": 0.25, "Q4_K": 0.12, "Q5_K": 0.06, "Q6_K": 0.03, "Q8_0": 0.01,
    "IQ4_NL": 0.12, "Q4_1": 0.12, "Q5_0": 0.06, "Q5_1": 0.06,
}  # fmt: skip


def engine():
    pytest.importorskip("cyllama", reason="comes with the extra llama-cpp")


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def test_types_fit_the_rows_and_the_smallest_come_first():
    assert types_for(512) == types_for(256) == TYPES[256]
    assert types_for(288) == types_for(32) == TYPES[32]
    assert types_for(40) == types_for(255) == ()
    for multiple in TYPES:
        bits = [BYTES[kind][1] / BYTES[kind][0] for kind in types_for(multiple)]
        assert bits == sorted(bits)
        assert all(multiple % BYTES[kind][0] == 0 for kind in types_for(multiple))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tensors_of_any_shape_come_back_under_their_names(tmp_path, dtype):
    engine()
    given = tensors(dtype)
    found = roundings(given, tmp_path, dtype=dtype, threads=1)
    assert found.keys() == given.keys() - {"odd"}, "no type fits its rows"
    for name, by_kind in found.items():
        assert tuple(by_kind) == types_for(SHAPES[name][-1])
        exact = given[name].float()
        sizes = []
        for kind, raw in by_kind.items():
            block, size = BYTES[kind]
            assert raw.nbytes == exact.numel() // block * size
            there = dequantise(raw, kind)
            assert (there.dtype, there.shape) == (torch.float32, exact.shape)
            assert float((there - exact).norm() / exact.norm()) < ERRORS[kind], (name, kind)
            sizes.append(raw.nbytes)
        assert sizes == sorted(sizes)
        assert bytes(by_kind["Q8_0"]) == gguf.quants.quantize(exact.numpy(), gguf.GGMLQuantizationType.Q8_0).tobytes()


def test_a_file_is_rounded_to_the_types_that_are_asked_for(tmp_path):
    engine()
    given = tensors()
    scratch = Scratch(tmp_path / "a.gguf", {name: SHAPES[name] for name in ("wide", "experts")}, torch.float32)
    for name in ("wide", "experts"):
        scratch.add(given[name])
    scratch.close()
    found = rounded([(scratch, ["Q4_K", "Q6_K"])], 1)
    assert {name: tuple(row) for name, row in found.items()} == dict.fromkeys(("wide", "experts"), ("Q4_K", "Q6_K"))
    assert np.array_equal(
        found["wide"]["Q4_K"], roundings(given, tmp_path, dtype=torch.float32, threads=1)["wide"]["Q4_K"]
    )


def test_where_no_type_fits_nothing_is_rounded(tmp_path):
    assert roundings({"odd": torch.ones(4, 40)}, tmp_path, dtype=torch.float32, threads=1) == {}
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_those_that_the_bytes_stand_for():
    exact = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    raw = gguf.quants.quantize(exact.numpy(), gguf.GGMLQuantizationType.Q5_1)
    torch.testing.assert_close(dequantise(raw, "Q5_1"), exact, rtol=0, atol=0.1)


def test_a_quantiser_that_fails_names_the_types(tmp_path):
    engine()
    (tmp_path / "a.gguf").write_bytes(b"GGUF, but cut")
    jobs = [(tmp_path / "a.gguf", tmp_path / kind, kind) for kind in ("Q6_K", "Q8_0")]
    with pytest.raises(EngineError, match=r"llama\.cpp can't quantise to Q6_K, Q8_0"):
        process.quantise_files(jobs, 1, pure=True)


def test_without_the_engine_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(process.ENGINES, "llama.cpp", ("no_such_package", "llama-cpp"))
    with pytest.raises(MissingExtraError, match="llama-cpp"):
        roundings(tensors(), tmp_path, dtype=torch.float32, threads=1)
