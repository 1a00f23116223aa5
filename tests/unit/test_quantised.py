"""Models made ready for a quantisation in groups of columns: `units.quantisation`, or `--for`."""

import re

import pytest
from tests.tiny.checkpoint import tiny_checkpoint

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.gguf.header import ELEMENTS
from darwinlm.recipe import UnitsSettings, load_recipe, options
from darwinlm.recipe.quantisation import LLAMA_CPP, QUANTISATIONS, WRITTEN
from darwinlm.runtime.errors import RecipeError
from darwinlm.units.levels import module_levels

FITTING = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4}
SIZES = {**FITTING, "head_dim": 64, "num_hidden_layers": 1}


def described(folder, **sizes):
    checkpoint = Checkpoint.open(tiny_checkpoint(folder, "llama", **{**SIZES, **sizes}))
    return checkpoint, module_shapes(checkpoint)


@pytest.mark.parametrize(
    ("quantisation", "heads", "widths"),
    [
        (None, range(1, 9), range(32, 1025, 32)),
        ("fp8", range(1, 9), range(32, 1025, 32)),
        ("gptq", [2, 4, 6, 8], range(128, 1025, 128)),
        ("q4_k_m", [4, 8], [256, 512, 768, 1024]),
    ],
)
@pytest.mark.parametrize("attention", ["query_head", "lattice", "kv_group"])
def test_widths_are_whole_groups(tmp_path, quantisation, heads, widths, attention):
    checkpoint, shapes = described(tmp_path)
    units = UnitsSettings(quantisation=quantisation, attention=attention)
    of_attention, of_mlp = (module_levels(checkpoint.family, shape, units).levels for shape in shapes)
    assert [level.width for level in of_mlp] == [0, *widths]
    possible = {"query_head": range(1, 9), "lattice": [1, 2, 3, 4, 6, 8], "kv_group": [2, 4, 6, 8]}
    assert {level.query_heads for level in of_attention} == {0} | ({*heads} & {*possible[attention]})


def test_with_a_grid_the_nearest_whole_groups_are_taken(tmp_path):
    checkpoint, shapes = described(tmp_path / "llama")
    units = UnitsSettings(quantisation="q4_k_m", levels=(0.3, 0.6), mlp_multiple=96)
    assert units.mlp_step == 768
    units = UnitsSettings(quantisation="q4_k_m", levels=(0.3, 0.6))
    assert [level.width for level in module_levels(checkpoint.family, shapes[1], units).levels] == [0, 256, 512, 1024]
    mixture = Checkpoint.open(tiny_checkpoint(tmp_path / "m", "mixtral", intermediate_size=256, num_hidden_layers=1))
    levels = module_levels(mixture.family, module_shapes(mixture)[1], UnitsSettings(quantisation="awq")).levels
    assert {level.width for level in levels} == {0, 128, 256}


def test_an_mlp_narrower_than_a_group_is_refused(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    with pytest.raises(
        RecipeError,
        match=r"with units\.quantisation=w4a16 MLP widths are multiples of 128, but block 0 mlp has only 96 channels",
    ):
        module_levels(checkpoint.family, module_shapes(checkpoint)[1], UnitsSettings(quantisation="w4a16"))


@pytest.mark.parametrize("name", ["Q4_K_M", "q4-k-m", " q4_k_m "])
def test_names_are_read_as_people_write_them(name):
    assert load_recipe(overrides=options(ready_for=name)).units.quantisation == "q4_k_m"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("q4_km", "did you mean q4_k_m or"),
        ("aqw", "did you mean awq?"),
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
