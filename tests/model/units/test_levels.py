"""The levels that units, grids and quantisations in groups of columns give to modules."""

import pytest
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.units.levels import module_levels
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.errors import RecipeError
from darwinlm.steps.stitch.stitch import stitch


def test_units_decide_which_levels_there_are(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    attention, mlp = module_shapes(checkpoint)[:2]
    by_group = module_levels(checkpoint.family, attention, UnitsSettings(attention="kv_group"))
    assert [(level.sizes.groups, level.sizes.heads_per_group) for level in by_group.levels] == [
        (0, 0),
        (1, 2),
        (2, 2),
        (3, 2),
    ]
    lattice = module_levels(checkpoint.family, attention, UnitsSettings(attention="lattice"))
    assert {(level.sizes.groups, level.sizes.heads_per_group) for level in lattice.levels} == {
        (0, 0), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)
    }  # fmt: skip
    free = module_levels(checkpoint.family, attention, UnitsSettings(attention="query_head"))
    assert [(level.sizes.groups, level.sizes.heads) for level in free.levels] == [
        (0, 0),
        *((3, n) for n in range(1, 7)),
    ]
    for multiple, widths in ((32, [0, 32, 64, 96]), (40, [0, 40, 80, 96]), (96, [0, 96])):
        found = module_levels(checkpoint.family, mlp, UnitsSettings(mlp_multiple=multiple))
        assert [level.sizes.width for level in found.levels] == widths


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
    assert [level.sizes.width for level in module_levels(checkpoint.family, mlp, units).levels] == widths
    assert [level.sizes.heads for level in module_levels(checkpoint.family, attention, units).levels] == heads


def test_the_papers_grid_has_eleven_levels_of_multiples_of_32(tmp_path):
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path, "llama", intermediate_size=1024))
    levels = module_levels(checkpoint.family, module_shapes(checkpoint)[1], UnitsSettings(levels="paper")).levels
    assert [level.sizes.width for level in levels] == [0, 96, 192, 320, 416, 512, 608, 704, 832, 928, 1024]


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
    assert (attention.sizes.groups, attention.sizes.width, attention.sizes.owners) == (3, 32, tuple(kept))
    levels = module_levels(again.family, attention, run.recipe.units).levels
    assert [(level.sizes.groups, level.sizes.heads) for level in levels] == [(0, 0), *((3, n) for n in range(1, 5))]
    assert levels[-1].params == database.modules[0].levels[4].params
    with pytest.raises(
        RecipeError, match=r"units\.attention is lattice, but the KV heads of block 0 attention are used"
    ):
        module_levels(again.family, attention, UnitsSettings(attention="lattice"))


def test_a_unit_wider_than_the_mlp_is_refused(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    with pytest.raises(RecipeError, match=r"units\.mlp_multiple is 128, but block 0 mlp has only 96 channels"):
        module_levels(checkpoint.family, module_shapes(checkpoint)[1], UnitsSettings(mlp_multiple=128))


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
    assert [level.sizes.width for level in of_mlp] == [0, *widths]
    possible = {"query_head": range(1, 9), "lattice": [1, 2, 3, 4, 6, 8], "kv_group": [2, 4, 6, 8]}
    assert {level.sizes.heads for level in of_attention} == {0} | ({*heads} & {*possible[attention]})


def test_with_a_grid_the_nearest_whole_groups_are_taken(tmp_path):
    checkpoint, shapes = described(tmp_path / "llama")
    units = UnitsSettings(quantisation="q4_k_m", levels=(0.3, 0.6), mlp_multiple=96)
    assert units.mlp_step == 768
    units = UnitsSettings(quantisation="q4_k_m", levels=(0.3, 0.6))
    assert [level.sizes.width for level in module_levels(checkpoint.family, shapes[1], units).levels] == [
        0,
        256,
        512,
        1024,
    ]
    mixture = Checkpoint.open(tiny_checkpoint(tmp_path / "m", "mixtral", intermediate_size=256, num_hidden_layers=1))
    levels = module_levels(mixture.family, module_shapes(mixture)[1], UnitsSettings(quantisation="awq")).levels
    assert {level.sizes.width for level in levels} == {0, 128, 256}


def test_an_mlp_narrower_than_a_group_is_refused(tiny_llama):
    checkpoint = Checkpoint.open(tiny_llama)
    with pytest.raises(
        RecipeError,
        match=r"with units\.quantisation=w4a16 MLP widths are multiples of 128, but block 0 mlp has only 96 channels",
    ):
        module_levels(checkpoint.family, module_shapes(checkpoint)[1], UnitsSettings(quantisation="w4a16"))
