"""The sizes of modules: what is derived from them, and the configuration of layers."""

from dataclasses import replace

import pytest
import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_parameters, module_shapes
from darwinlm.model.layer_sizes import BlockSizes, LayerSizes, block_sizes
from darwinlm.model.surgery.layer_table import layer_overrides, layer_table, present_table
from darwinlm.model.units.levels import kept_groups, module_levels, with_owners
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.report.summary import BlockFigures

EVEN = LayerSizes("attention", 32, groups=2, head_dim=8)
UNEVEN = LayerSizes("attention", 24, groups=2, head_dim=8, even=False, owners=(0, 0, 1))
MIXTURE = LayerSizes("mlp", 16, experts=4, shared=48)


def test_heads_follow_from_columns():
    assert (EVEN.heads, EVEN.heads_per_group, EVEN.owner_of_heads) == (4, 2, (0, 0, 1, 1))
    assert (UNEVEN.heads, UNEVEN.heads_per_group, UNEVEN.owner_of_heads) == (3, 0, (0, 0, 1))
    for other in (LayerSizes("attention"), MIXTURE, LayerSizes("mixer", 64)):
        assert (other.heads, other.heads_per_group, other.owner_of_heads) == (0, 0, ())


def test_rows_of_input_projections():
    assert EVEN.rows == {"query": 32, "gated_query": 64, "key_value": 16, "channel": 32}
    assert BlockSizes(0, attention=EVEN, mlp=MIXTURE).rows["channel"] == 16


def test_groups_that_are_not_even_become_one_for_every_query_head():
    assert EVEN.in_even_groups() == EVEN
    assert UNEVEN.in_even_groups() == LayerSizes("attention", 24, groups=3, head_dim=8)


def test_owners_are_known_once_the_columns_are_chosen(tiny_llama):
    """Six query heads of eight columns share three KV heads."""
    shape = module_shapes(Checkpoint.open(tiny_llama))[0]
    level = replace(shape.sizes, width=32, even=False)
    with pytest.raises(AssertionError, match="aren't chosen yet"):
        assert level.owner_of_heads
    columns = torch.cat([torch.arange(8) + 8 * head for head in (0, 2, 3, 5)])
    groups, sizes = kept_groups(shape, level, columns)
    assert groups.tolist() == [0, 1, 2]
    assert sizes == with_owners(shape, level, columns) == replace(level, owners=(0, 1, 1, 2))
    halves = torch.cat([torch.arange(8) + 8 * head for head in (0, 2, 5)])
    assert with_owners(shape, replace(level, width=24), halves) == LayerSizes("attention", 24, groups=3, head_dim=8)


def test_the_last_level_has_the_sizes_of_the_checkpoint(tiny_folder):
    for model_type in ("llama", "qwen3_moe", "qwen3_5_text", "gemma4_text", "deepseek_v2"):
        checkpoint = Checkpoint.open(tiny_folder(model_type))
        for shape in module_shapes(checkpoint):
            levels = module_levels(checkpoint.family, shape, UnitsSettings(mlp_multiple=8)).levels
            assert levels[-1].sizes == shape.sizes
            assert levels[-1].params == module_parameters(checkpoint.family, shape, shape.sizes)
            assert len(levels) == 1 or levels[0].sizes == LayerSizes(shape.kind)


def test_fields_of_a_layer(tiny_folder):
    llama = Checkpoint.open(tiny_folder("llama"))
    assert layer_overrides(llama.family, EVEN) == {"num_attention_heads": 4, "num_key_value_heads": 2}
    assert layer_overrides(llama.family, UNEVEN) == {
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "query_groups": [0, 0, 1],
        "stored_kv_heads": 2,
    }
    modules = {(0, "mlp"): LayerSizes("mlp", 40), (1, "attention"): EVEN, (1, "mlp"): LayerSizes("mlp")}
    assert layer_table(llama.family, 3, modules) == {
        0: {"intermediate_size": 40, "skip": ["attention"]},
        1: {"num_attention_heads": 4, "num_key_value_heads": 2, "skip": ["mlp"]},
        2: {"skip": ["attention", "mlp"]},
    }
    assert present_table(llama)[0] == {
        "intermediate_size": 96,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
    }


def test_a_block_is_the_sizes_of_its_modules():
    blocks = block_sizes(3, {(0, "attention"): EVEN, (0, "mlp"): MIXTURE, (1, "mixer"): LayerSizes("mixer", 8)})
    assert [block.empty for block in blocks] == [False, False, True]
    assert blocks[0].of("attention") == EVEN
    assert blocks[2] == BlockSizes(2)
    figures = BlockFigures.of(blocks[0], BlockSizes(0, mlp=replace(MIXTURE, width=8, experts=2)))
    assert (figures.dense_groups, figures.dense_heads, figures.groups, figures.heads) == (2, 4, 0, 0)
    assert (figures.channels, figures.dense_channels) == (16, 64)
