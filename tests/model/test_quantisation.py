"""Quantisations: their names as people write them, and the elements of GGUF files."""

import re

import pytest

from darwinlm.formats.gguf.header import ELEMENTS
from darwinlm.model.quantisation import LLAMA_CPP, QUANTISATIONS, WRITTEN
from darwinlm.recipe import load_recipe, options
from darwinlm.runtime.errors import RecipeError


@pytest.mark.parametrize("name", ["Q4_K_M", "q4-k-m", " q4_k_m "])
def test_names_are_read_as_people_write_them(name):
    assert load_recipe(overrides=options(ready_for=name)).units.quantisation == "q4_k_m"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("q4_km", "did you mean 'q4_k_m'?"),
        ("aqw", "did you mean 'awq'?"),
        ("int4", "4 bits are q4_k_m or q4_0 in GGUF files"),
        ("4bit", "4 bits are q4_k_m or q4_0 in GGUF files"),
        ("Q8", "8 bits are q8_0 in GGUF files"),
        ("zzzzzz", "known are q2_k, q3_k_s"),
        ("", "known"),
    ],
)
def test_an_unknown_name_gets_one_error_with_suggestions(name, hint):
    with pytest.raises(RecipeError, match=re.escape(f"units.quantisation: there is no quantisation '{name}': {hint}")):
        load_recipe(overrides=options(ready_for=name))


def test_elements_of_gguf_files_fill_the_groups():
    gguf = pytest.importorskip("gguf", reason="the extra gguf")
    for name in WRITTEN:
        each = QUANTISATIONS[name]
        element = gguf.GGMLQuantizationType[each.element]
        assert gguf.GGML_QUANT_SIZES[element] == (ELEMENTS[each.element].weights, ELEMENTS[each.element].bytes)
        assert ELEMENTS[each.element].weights == each.columns
        if each.by == LLAMA_CPP:
            assert f"MOSTLY_{name.upper()}" in gguf.LlamaFileType.__members__
    for name, element in ELEMENTS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (element.weights, element.bytes)
        assert not element.narrow or ELEMENTS[element.narrow].weights < element.weights
