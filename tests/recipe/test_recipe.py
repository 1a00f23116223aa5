"""The recipe: defaults, errors with the field and the probable intention, and the bundled ones."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny.published import NAMES, PARAMETERS, PHASES, published_config
from tests.tiny.reader import FirstUnits
from transformers import AutoConfig, AutoModelForCausalLM

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import family_of
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.surgery.layer_table import layer_table
from darwinlm.model.surgery.smaller_config import smaller_config
from darwinlm.model.surgery.smaller_model import empty_model
from darwinlm.model.units.space import space_of
from darwinlm.pipeline import STEPS
from darwinlm.recipe import Recipe, load_recipe, load_recipes, parse_recipe, shipped_recipes
from darwinlm.recipe.recipe import CoreRecipe, field_order, with_sections
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.section import Section
from darwinlm.runtime.step import Step
from darwinlm.steps.budget.bounds import cost_of, counted, resolve_budget
from darwinlm.steps.refit.step import Refit
from darwinlm.steps.search.propose import filled
from darwinlm.steps.search.search_amounts import SelectionRound


def message(tree: dict[str, Any]) -> str:
    """The error message about a tree."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(tree, "here")
    return str(caught.value)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def rounds(offspring: int, *pairs: tuple[int, int]) -> dict[str, Any]:
    return {"search": {"offspring": offspring, "rounds": [{"tokens": t, "survivors": s} for t, s in pairs]}}


def test_the_defaults_are_valid():
    assert load_recipe() == Recipe()
    assert Recipe.model_validate(Recipe().model_dump()) == Recipe()
    assert Recipe.model_validate(Recipe().model_dump(mode="json")) == Recipe(), "as summary.json holds it"


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"budgett": {}}, ["unknown field 'budgett': did you mean 'budget'?"]),
        ({"budget": {"kep": 0.5}}, ["unknown field 'budget.kep': did you mean 'keep'?"]),
        ({"search": {"rounds": [{"token": 64, "survivors": 1}]}}, ["'search.rounds.0.token': did you mean 'tokens'?"]),
        ({"qqqqqqq": 1}, ["unknown field 'qqqqqqq'", *Recipe.model_fields]),
        ({"database": {"qqqqqqq": 1}}, ["unknown field 'database.qqqqqqq'", "metric"]),
        ({"budgett": {}, "search": {"generations": 0}}, ["wrong setting in here: ", "budgett", "search.generations"]),
        ({"search": {"generations": "many"}}, ["search.generations: ", "'many'"]),
        ({"search": {"method": "best"}}, ["search.method: ", "known are gradient, paper (it is 'best')"]),
        ({"units": {"levels": ["150%"]}}, ["units.levels: ", "must be all, paper, or shares from 0 to 100 %"]),
        ({"recovery": {"learning_rate": float("nan")}}, ["recovery.learning_rate: ", "finite"]),
        ({"text": {"sequence_length": 7}}, ["text.sequence_length: ", "greater than or equal to 8"]),
        ({"budget": 0.5}, ["budget: ", "valid dictionary or instance of BudgetSettings (it is 0.5)"]),
        ({"preset": ["quick"]}, ["preset: ", "it is ['quick']"]),
        ({"search": {"method": "paper", "layers": "equal"}}, ["search: method=paper trades levels between layers"]),
        ({"time": "1e300h"}, ["time: ", "less than or equal to 1000000"]),
        (rounds(3, (64, 3), (128, 1)), ["search: rounds: survivors must decrease", "[3, 3, 1]"]),
        (rounds(8, (64, 2), (128, 4), (256, 1)), ["search: rounds: survivors must decrease", "[8, 2, 4, 1]"]),
        (rounds(8, (64, 2)), ["the last one must leave one survivor, but it leaves 2"]),
        (rounds(8), ["rounds: at least one is needed"]),
    ],
)
def test_what_is_wrong_is_said_by_field_with_the_near_one_or_the_value(tree, said):
    found = message(tree)
    for part in said:
        assert part in found


@pytest.mark.parametrize(
    ("keep", "share"), [("50%", 0.5), ("50 %", 0.5), (" 12.5% ", 0.125), ("0.5", 0.5), (1, 1.0), ("100%", 1.0)]
)
def test_a_share_can_be_written_in_several_ways(keep, share):
    assert Recipe.model_validate({"budget": {"keep": keep}}).budget.keep == share


@pytest.mark.parametrize("keep", [0, -1, "0%", "-5%", 1.5, 50, "101%", 101, 1000])
def test_a_share_outside_its_range_is_refused(keep):
    said = message({"budget": {"keep": keep}})
    assert "budget.keep: must be from 1 to 100 %" in said
    assert ("did you mean 50%?" in said) == (keep == 50)


@pytest.mark.parametrize("keep", ["half", "%", "5O%", "", [0.5], True, "nan", "inf%", float("nan")])
def test_a_share_that_is_no_finite_number_is_refused(keep):
    assert "budget.keep: " in message({"budget": {"keep": keep}})


def test_a_file_then_assignments_then_overrides(tmp_path):
    path = written(tmp_path / "r.yaml", "budget: {keep: 70%}\nsearch: {seed: 3, generations: 7}\n")
    recipe = load_recipe(path, ["search.seed=4", "budget.keep=60%"], {"budget.keep": "50%", "model": "m", "text": None})
    assert recipe.budget.keep == 0.5
    assert recipe.search.seed == 4
    assert recipe.search.generations == 7
    assert recipe.model == "m"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budgett: {}\n", "did you mean 'budget'"),
        ("a: [", "isn't YAML"),
        ("!!python/object/apply:os.getcwd []", "isn't YAML"),
        (b"\xff\xfe\x00binary", "isn't YAML"),
        ("- budget\n", "must be a mapping of sections, but it is a list"),
        ("on: 3\n", "strings"),
        ("budget: {keep: 50%}\nbudget: {keep: 60%}\n", "the key 'budget' occurs twice: keep one of them.*line 2"),
        ("search:\n  seed: 1\n  'seed': 2\n", "the key 'seed' occurs twice"),
        ("time: 1:30\n", r"time: must be a number with a unit, such as 30m; .* \(it is '1:30'\)"),
        ("time: 1:30:00.5\n", r"time: must be .* \(it is '1:30:00\.5'\)"),
        ("search: {seed: 1:30}\n", r"search\.seed: .* \(it is '1:30'\)"),
        ("search: {offspring: yes}\n", r"search\.offspring: must be a number \(it is True\)"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path, text, said):
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RecipeError, match=r"can't read the recipe .*missing\.yaml: No such file"):
        load_recipe(tmp_path / "missing.yaml")
    with pytest.raises(RecipeError, match=r"can't read the recipe .*: Is a directory"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("budget.keep", r"--set takes section\.field=value"),
        ("", r"--set takes section\.field=value"),
        (" =3", r"--set takes section\.field=value"),
        ("text.source=[a", r"--set text\.source: '\[a' isn't a YAML value"),
        ("budget.kep=0.5", "did you mean 'keep'"),
        ("bugdet.keep=0.5", "did you mean 'budget'"),
        ("a..b=1", "unknown field 'a'"),
        ("budget.keep.more=1", r"budget\.keep: "),
        ("model.name=x", "model: "),
        ("text=5 text.source=a.txt", r"'text\.source': 'text' isn't a section of the recipe, but 5: give its fields"),
        ("a=5 a.b=1", r"'a\.b': 'a' isn't a section of the recipe: sections are compute, vocabulary, text"),
        ("time=1:30", r"time: must be a number with a unit.* \(it is '1:30'\)"),
        ("search.rounds=[{tokens: 64, tokens: 32}]", r"--set search\.rounds: .* the key 'tokens' occurs twice"),
    ],
)
def test_an_assignment_that_is_none(assignment, said):
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(None, assignment.split() if re.search("=5 ", assignment) else [assignment])
    assert "\n" not in str(caught.value)


def test_a_section_without_lines_has_its_defaults(tmp_path):
    path = written(tmp_path / "r.yaml", "search:\n  # generations: 3\nbudget:\ntime:\n")
    assert load_recipe(path) == load_recipe(None)
    assert load_recipe(path, ["search.generations=3"]).search.generations == 3


def test_merged_mappings_may_replace_what_they_merge(tmp_path):
    path = written(tmp_path / "r.yaml", "search: &a {seed: 3}\nrefit: {}\ntext: {<<: *a, seed: 4}\n")
    assert load_recipe(path).text.seed == 4


def test_values_of_assignments_are_yaml():
    recipe = load_recipe(
        None,
        [
            "text.source='a = b'",
            "search.minutes=1.5",
            "recovery.gradient_checkpointing=true",
            "recovery.text=null",
            " search.seed =9",
            "search.rounds=[{tokens: 64, survivors: 1}]",
        ],
    )
    assert recipe.text.source == "a = b"
    assert recipe.search.minutes == 1.5
    assert recipe.recovery.gradient_checkpointing is True
    assert recipe.recovery.text is None
    assert recipe.search.seed == 9
    assert recipe.search.rounds == (SelectionRound(tokens=64, survivors=1),)


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
    space = space_of(recipe.units, checkpoint, shapes)
    outside = total - space.params(space.dense)
    target = float(re.search(r"-([\d.]+)b$", base)[1]) * 1e9
    cost = cost_of(recipe, counted(recipe, checkpoint, space, shapes, outside=outside, equal=False))
    budget = resolve_budget(cost, recipe.budget)
    assert budget.limit == target
    assert outside + budget.lower == pytest.approx(target, rel=0.01)

    allocation = filled(space.dense, cost.costs, budget, random.Random(0))
    kept = outside + space.params(allocation)
    assert kept == pytest.approx(target, rel=0.01)
    database = FirstUnits(checkpoint, recipe.units)
    levels = zip(space.modules, space.levels(allocation), strict=True)
    sizes = {module.place: database.sizes(*module.place, level) for module, level in levels}
    table = layer_table(checkpoint.family, checkpoint.n_blocks, sizes)
    built = empty_model(smaller_config(checkpoint, table), checkpoint)
    assert sum(parameter.numel() for parameter in built.parameters()) == kept


def test_a_recipe_of_ones_own_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama2-7b-2.7b").write_text("budget: {keep: 10%}", encoding="utf-8")
    assert load_recipe("llama2-7b-2.7b").budget.keep == 0.1


def test_an_amount_is_the_same_in_every_unit():
    shares = [load_recipe(None, [f"budget.keep={tenths / 10}%"]).budget.keep for tenths in range(10, 1001)]
    assert shares == [float(f"{tenths / 1000:.3f}") for tenths in range(10, 1001)]
    assert load_recipe(None, ["budget.latency=35ms"]) == load_recipe(None, ["budget.latency=0.035s"])
    assert load_recipe(None, ["time=42s"]) == load_recipe(None, ["time=0.7m"])
    assert load_recipe(None, ["recovery.tokens=0.3M"]).recovery.tokens == 300_000


def test_assignments_may_come_from_a_generator():
    words = ["search.seed=4", "budget.keep=60%"]
    assert load_recipe(None, (word for word in words)) == load_recipe(None, words) != Recipe()
    assert load_recipe(Recipe(), iter(words)).search.seed == 4
    assert [recipe.search.seed for recipe in load_recipes(None, iter(words))] == [4]
    for wrong in ("search.seed=4", [("search.seed", 4)]):
        with pytest.raises(RecipeError, match=r"assignments takes a list such as \['search.seed=1'\], not "):
            load_recipe(None, wrong)


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


class GainSettings(Section):
    """Settings of a step that the recipe doesn't know."""

    scale: float = 1.0
    """Factor of the norm."""


class Gains(Step[None]):
    """A step with settings of its own."""

    name = "gains"
    Settings = GainSettings
    section = "gains"

    def work(self, task):
        raise NotImplementedError

    def read(self, task):
        raise NotImplementedError


def test_a_steps_settings_are_a_section_of_the_recipe():
    refit = STEPS.index(Refit)
    steps = (*STEPS[: refit + 1], Gains, *STEPS[refit + 1 :])
    kind = with_sections(steps)
    recipe = kind.model_validate({"gains": {"scale": 2}, "search": {"generations": 2}})
    assert recipe.section(GainSettings).scale == 2
    assert recipe.search.generations == 2
    assert kind().section(GainSettings).scale == 1
    assert kind.model_validate(recipe.model_dump(mode="json")) == recipe
    order = field_order(kind, steps)
    assert sorted(order) == sorted(kind.model_fields)
    assert order[order.index("refit") :] == ["refit", "gains", "recovery"]
    assert order[:3] == ["model", "time", "preset"]
    assert Recipe.model_fields.keys() == CoreRecipe.model_fields.keys(), "every step's settings are in the core"
