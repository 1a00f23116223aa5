"""The element type of a run: what the device is quick with, where the recipe leaves it open."""

from __future__ import annotations

import pytest
import torch

from darwinlm.compute import fast_dtype, settled
from darwinlm.console import Reporter
from darwinlm.recipe import Recipe, merge
from darwinlm.run import Run

CPU = torch.device("cpu")


@pytest.fixture
def processor(monkeypatch):
    """Makes the processor one that can do these things."""

    def able(**capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return able


def test_tiles_make_bfloat16_quick(processor):
    processor(amx_bf16=True, avx512_bf16=True)
    assert fast_dtype(CPU) == "bfloat16"


def test_so_do_vectors_of_one_maker(processor):
    processor(amx_bf16=False, avx512_bf16=True, cpu_name="AMD EPYC")
    assert fast_dtype(CPU) == "bfloat16"


@pytest.mark.parametrize(
    "capabilities",
    [
        {"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R) Processor"},
        {"avx512_bf16": True},
        {"avx512_bf16": False, "avx2": True, "cpu_name": "AMD EPYC"},
        {"bf16": True},
    ],
)
def test_other_processors_work_in_float32(processor, capabilities):
    processor(**capabilities)
    assert fast_dtype(CPU) == "float32"


@pytest.mark.parametrize("tiles", [True, False])
def test_an_older_pytorch_is_asked_in_its_own_way(monkeypatch, tiles):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    assert fast_dtype(CPU) == ("bfloat16" if tiles else "float32")


def test_a_gpu_works_in_bfloat16(processor):
    processor(amx_bf16=False)
    assert fast_dtype(torch.device("cuda")) == "bfloat16"


def test_a_recipe_that_says_it_is_left_alone(processor):
    processor(amx_bf16=False)
    recipe = merge(Recipe(), ["compute.dtype=bfloat16", "recovery.dtype=auto"], {})
    found = settled(recipe, CPU)
    assert (found.compute.dtype, found.recovery.dtype) == ("bfloat16", "float32")
    assert settled(found, torch.device("cuda")) == found


def test_a_run_computes_and_names_what_its_recipe_then_says(processor, tmp_path):
    processor(amx_bf16=False)
    run = Run(merge(Recipe(), [], {"model": "any"}), tmp_path / "out", Reporter(quiet=True))
    assert run.dtype == torch.float32
    assert run.arithmetic["dtype"] == "torch.float32"
    assert run.recipe.recovery.dtype == "float32"
