"""Shapes of modules, and the levels that units and grids give them."""

import pytest
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.recipe import UnitsSettings
from darwinlm.runtime.errors import CheckpointError, RecipeError
from darwinlm.surgery.stitch import stitch
from darwinlm.units.levels import module_levels


def test_query_heads_that_do_not_divide_by_the_groups(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    names = checkpoint.skeleton().state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in names.items()}
    for name in ("k_proj", "v_proj"):
        shapes[f"model.layers.1.self_attn.{name}.weight"] = (32, 48)
    with pytest.raises(CheckpointError, match="block 1: 6 query heads don't divide by 4 KV heads"):
        module_shapes(checkpoint, shapes)


def test_units_decide_which_levels_there_are(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    attention, mlp = module_shapes(checkpoint)[:2]
    by_group = module_levels(checkpoint.family, attention, UnitsSettings(attention="kv_group"))
    assert [(level.groups, level.heads) for level in by_group.levels] == [(0, 0), (1, 2), (2, 2), (3, 2)]
    lattice = module_levels(checkpoint.family, attention, UnitsSettings(attention="lattice"))
    assert {(level.groups, level.heads) for level in lattice.levels} == {
        (0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)
    }  # fmt: skip
    free = module_levels(checkpoint.family, attention, UnitsSettings(attention="query_head"))
    assert [(level.groups, level.query_heads) for level in free.levels] == [(0, 0), *((3, n) for n in range(1, 7))]
    for multiple, widths in ((32, [0, 32, 64, 96]), (40, [0, 40, 80, 96]), (96, [0, 96])):
        found = module_levels(checkpoint.family, mlp, UnitsSettings(mlp_multiple=multiple))
        assert [level.width for level in found.levels] == widths


@pytest.mark.parametrize(
    ("levels", "widths", "heads"),
    [
        ("all", [*range(0, 97, 8)], [*range(7)]),
        ("paper", [0, 8, 16, 32, 40, 48, 56, 64, 80, 88, 96], [*range(7)]),
        (["50%"], [0, 48, 96], [0, 3, 6]),
        ([0.3, 0.9], [0, 32, 88, 96], [0, 2, 5, 6]),
    ],
)
def test_a_grid_of_levels(tiny_llama, levels, widths, heads):
    checkpoint = Checkpoint.open(tiny_llama)
    attention, mlp = module_shapes(checkpoint)[:2]
    units = UnitsSettings.model_validate({"attention": "query_head", "mlp_multiple": 8, "levels": levels})
    assert [level.width for level in module_levels(checkpoint.family, mlp, units).levels] == widths
    assert [level.query_heads for level in module_levels(checkpoint.family, attention, units).levels] == heads


def test_the_papers_grid_has_eleven_levels_of_multiples_of_32(tmp_path):
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path, "llama", intermediate_size=1024))
    levels = module_levels(checkpoint.family, module_shapes(checkpoint)[1], UnitsSettings(levels="paper")).levels
    assert [level.width for level in levels] == [0, 96, 192, 320, 416, 512, 608, 704, 832, 928, 1024]


def test_heads_that_are_shared_unevenly_can_only_be_cut_by_query_heads(tiny_llama, make_run, tmp_path):
    run = make_run(tiny_llama, tmp_path / "out", "units.attention=query_head", "units.mlp_multiple=32")
    database = run_stages(run, "database").database.reader
    allocation = tuple(4 if module.kind == "attention" else len(module.levels) - 1 for module in database.modules)
    model = stitch(database, allocation)
    kept = model.config.per_layer_config[0].query_groups
    assert len(kept) == 4
    model.save_pretrained(tmp_path / "model")
    again = Checkpoint.open(tmp_path / "model")
    attention = module_shapes(again)[0]
    assert (attention.groups, attention.width, attention.query_groups) == (3, 32, tuple(kept))
    levels = module_levels(again.family, attention, run.recipe.units).levels
    assert [(level.groups, level.query_heads) for level in levels] == [(0, 0), *((3, n) for n in range(1, 5))]
    assert levels[-1].params == database.modules[0].levels[4].params
    with pytest.raises(
        RecipeError, match=r"units\.attention is lattice, but the KV heads of block 0 attention are used"
    ):
        module_levels(again.family, attention, UnitsSettings(attention="lattice"))


def test_a_unit_wider_than_the_mlp_is_refused(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    with pytest.raises(RecipeError, match=r"units\.mlp_multiple is 128, but block 0 mlp has only 96 channels"):
        module_levels(checkpoint.family, module_shapes(checkpoint)[1], UnitsSettings(mlp_multiple=128))
