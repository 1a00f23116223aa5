"""The recipes that come along: they resolve by name, and what they ask for is what they are named after."""

import random
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.tiny.published import NAMES, PARAMETERS, PHASES, published_config
from tests.tiny.reader import FirstUnits
from transformers import AutoConfig, AutoModelForCausalLM

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import family_of
from darwinlm.families.shapes import module_shapes
from darwinlm.recipe import Recipe, load_recipe, shipped_recipes
from darwinlm.runtime.errors import RecipeError
from darwinlm.search.budgets import Counted, resolve_budget
from darwinlm.search.propose import filled
from darwinlm.surgery.stitch import chosen_levels, empty_model, layer_table, sizes_in, smaller_config
from darwinlm.units.levels import module_levels
from darwinlm.units.space import SearchSpace

ROOT = Path(__file__).parents[2]


def dense(name: str, folder: Path) -> Checkpoint:
    config = AutoConfig.from_pretrained(published_config(folder, name))
    return Checkpoint(folder, config, family_of(config), name)


def test_every_recipe_comes_along() -> None:
    assert sorted(shipped_recipes()) == sorted([*NAMES, *PHASES])


@pytest.mark.parametrize("name", NAMES)
def test_recipe_gives_the_size_it_is_named_after(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    base = name.removesuffix("-fast")
    checkpoint = dense(base, tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(checkpoint.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == PARAMETERS[base]

    shapes = module_shapes(checkpoint)
    space = SearchSpace(tuple(module_levels(checkpoint.family, shape, recipe.units) for shape in shapes))
    outside = total - space.params(space.dense)
    target = float(re.search(r"-([\d.]+)b$", base)[1]) * 1e9
    cost = Counted(recipe, checkpoint, space, shapes, outside, equal=False).cost
    budget = resolve_budget(cost, recipe.budget)
    assert budget.limit == target
    assert outside + budget.lower == pytest.approx(target, rel=0.01)

    allocation = filled(space.dense, cost.costs, budget, random.Random(0))
    kept = outside + space.params(allocation)
    assert kept == pytest.approx(target, rel=0.01)
    database = FirstUnits(checkpoint, recipe.units)
    table = layer_table(checkpoint.n_blocks, chosen_levels(space.modules, allocation), partial(sizes_in, database))
    built = empty_model(smaller_config(checkpoint, table), checkpoint)
    assert sum(parameter.numel() for parameter in built.parameters()) == kept


def test_a_recipe_of_ones_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama2-7b-2.7b").write_text("budget: {keep: 10%}", encoding="utf-8")
    assert load_recipe("llama2-7b-2.7b").budget.keep == 0.1


@pytest.mark.parametrize(
    ("name", "message"),
    [("llama2-7b-2.7", "did you mean 'llama2-7b-2.7b'"), ("gpt", "give a YAML file, or one of llama2-7b-2.7b, ")],
)
def test_unknown_name(name: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(name)


def test_the_file_with_every_default_is_the_defaults_and_explains_each():
    text = (ROOT / "recipe.default.yaml").read_text(encoding="utf-8")
    assert load_recipe(ROOT / "recipe.default.yaml").model_dump() == Recipe().model_dump()
    fields = re.findall(r"^ *[a-z_]+: .+$", text, flags=re.M)
    assert len(fields) > 40
    assert all(re.search(rf"#[^\n]*\n *{re.escape(field.strip())}$", text, flags=re.M) for field in fields[:10])
