"""Budgets: notation, contradictions, and costs of allocations."""

from types import SimpleNamespace

import pytest
import typer

import darwinlm
from darwinlm.cli import app
from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.units.cost import CostModel, parameter_costs
from darwinlm.model.units.levels import Level, ModuleLevels
from darwinlm.model.units.space import SearchSpace
from darwinlm.recipe import (
    BUDGETS,
    BudgetSettings,
    Recipe,
    load_recipe,
    load_recipes,
    options,
    parse_recipe,
)
from darwinlm.recipe.options import option_types
from darwinlm.report.write import _budget
from darwinlm.runtime.errors import BudgetError, RecipeError
from darwinlm.steps.budget.bounds import resolve_budget
from darwinlm.steps.budget.kinds import Bound, BudgetArguments
from darwinlm.steps.budget.problem import Budget, Problem
from darwinlm.steps.database.removal_metrics import OutputError
from darwinlm.steps.search.gradient_method import GradientMethod
from darwinlm.steps.search.paper_method import PaperMethod

BOUNDS = {
    "params": {"2.7B": 2_700_000_000, "350m": 350_000_000, "10k": 10_000, "1_234_567": 1_234_567, 12345: 12345},
    "bytes": {"4GiB": 4 << 30, "1.5 GB": 1_500_000_000, "900mb": 900_000_000, "512KiB": 512 << 10, 4096: 4096},
    "speedup": {"2x": 2.0, 1.5: 1.5},
    "latency": {"30ms": 0.030, "1.5s": 1.5, "200 us": 0.0002},
}


@pytest.mark.parametrize(
    ("field", "text", "value"), [(field, *case) for field, cases in BOUNDS.items() for case in cases.items()]
)
def test_bounds_are_written_as_people_write_them(field, text, value):
    budget = Recipe.model_validate({"budget": {field: text}}).budget
    assert budget.bound.value == pytest.approx(value, rel=1e-12)
    assert budget.kind == field
    assert budget.keep is None


@pytest.mark.parametrize(("text", "minutes"), [("30m", 30), ("1.5h", 90), ("90s", 1.5), (2, 2), ("2", 2)])
def test_time_for_the_search(text, minutes):
    assert Recipe.model_validate({"search": {"minutes": text}}).search.minutes == minutes


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"budget": {"params": "2.7Q"}}, "budget.params: has an unknown unit 'Q'; known are k, K, M, B, G, T"),
        ({"budget": {"params": "many"}}, "budget.params: must be a number with a unit, such as 2.7B"),
        ({"budget": {"bytes": "4gigs"}}, "unknown unit 'gigs'; known are B, kB, MB, GB, TB, KiB, MiB, GiB, TiB"),
        ({"budget": {"latency": 30}}, "budget.latency: needs a unit, as in 30ms; known are s, ms, us"),
        ({"budget": {"latency": "30min"}}, "budget.latency: has an unknown unit 'min'"),
        ({"budget": {"speedup": True}}, "budget.speedup: must be something like 2x, not true or false"),
        ({"budget": {"bytes": "-4GiB"}}, "budget.bytes: must be greater than 0"),
        ({"budget": {"keep": "50%", "params": "1B"}}, "budget: give one bound only, not keep and params at once"),
        ({"budget": {"keep": None}}, "no bound is given: give one of keep, params, bytes, file, speedup"),
        ({"budget": {"speedup": 2, "prefill_tokens": 0, "decode_tokens": 0}}, "there is nothing to time"),
        ({"search": {"rounds": [{"amount": 3}]}}, "known fields are tokens, survivors, training_tokens"),
        ({"search": {"minutes": "30 days"}}, "search.minutes: has an unknown unit 'days'"),
        ({"preset": "papers"}, "preset: must be 'default', 'quick', 'thorough' or 'paper' (it is 'papers')"),
    ],
)
def test_wrong_bounds_are_refused(tree, said):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(tree, "here")
    assert said in str(caught.value)


def test_a_bound_that_is_given_displaces_the_recipes_own_of_another_kind(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("budget: {keep: 40%, tolerance: 0.01}\n", encoding="utf-8")
    budget = load_recipe(path, (), {"budget.params": "1B"}).budget
    assert (budget.keep, budget.kind, budget.bound.value, budget.tolerance) == (None, "params", 10**9, 0.01)
    assert load_recipe(path, ["budget.bytes=1GiB"]).budget.kind == "bytes"
    assert load_recipe(Recipe(), ["budget.speedup=2x"], {}).budget.kind == "speedup"
    with pytest.raises(RecipeError, match="one bound only"):
        load_recipe(path, ["budget.bytes=1GiB"], {"budget.params": "1B"})


@pytest.mark.parametrize("given_as", ["75%,50%, 35%", ["75%", 0.5, "35%"]])
def test_several_bounds_are_several_recipes(given_as):
    recipes = load_recipes(None, (), {"budget.keep": given_as, "search.generations": 7})
    assert [recipe.budget.keep for recipe in recipes] == [0.75, 0.5, 0.35]
    assert {recipe.search.generations for recipe in recipes} == {7}


def test_one_bound_is_one_recipe():
    assert [recipe.budget.bound.value for recipe in load_recipes(None, (), {"budget.params": "2,700,000"})] == [
        2_700_000
    ]
    two = load_recipes(None, (), {"budget.params": "2.7B,350M"})
    assert [recipe.budget.bound.value for recipe in two] == [2_700_000_000, 350_000_000]
    with pytest.raises(RecipeError, match="duplicate value"):
        load_recipes(None, (), {"budget.keep": "50%,0.5"})
    with pytest.raises(RecipeError, match=r"a comma separates several sizes, and 0 is none: did you mean 0\.5\?"):
        load_recipes(None, (), {"budget.keep": "0,5"})
    (large, small) = darwinlm.load_recipes(None, ["model=MODEL", "budget.keep=75%,50%"])
    assert (large.budget.keep, small.budget.keep) == (0.75, 0.5)
    longer = load_recipe(small, ["search.generations=3"], {})
    for second, said in (
        (large, "a sweep's budgets must differ; these are keep-75, keep-75"),
        (load_recipe(large, [], {"budget.params": "1M"}), "differ in their bound alone, which is of one kind"),
        (longer, "a sweep's recipes differ in their bound alone"),
    ):
        with pytest.raises(RecipeError, match=said):
            darwinlm.prune_sweep([large, second], "nowhere")


@pytest.mark.parametrize("given_as", ["75%,50%", ["75%", 0.5]])
def test_one_recipe_has_one_bound(given_as):
    message = r"budget\.keep takes one value here, not '.*75%.*': several sizes need .* prune_sweep"
    with pytest.raises(RecipeError, match=message):
        load_recipe(None, (), {"budget.keep": given_as})
    with pytest.raises(RecipeError, match=message):
        load_recipe(Recipe(), (), {"budget.keep": given_as})
    with pytest.raises(RecipeError, match=message):
        darwinlm.prune("model", keep=given_as)


def test_every_kind_of_budget_is_an_argument_an_option_and_a_setting():
    assert tuple(BudgetArguments.__annotations__) == BUDGETS.names()
    assert tuple(option_types())[-len(BUDGETS.names()) :] == BUDGETS.names()
    options = [option.name for option in typer.main.get_command(app).commands["prune"].params]
    assert set(BUDGETS) <= set(options)
    assert set(BUDGETS) <= BudgetSettings.settings_taken().keys()
    with pytest.raises(TypeError, match=r"unexpected arguments \['kep'\]: known are model, vocab, .*, keep, params"):
        darwinlm.prune("model", kep=0.5)


@pytest.mark.parametrize("bound", [{"keep": "75%"}, {"params": "1M"}, {"file": "90MB"}, {"latency": "30ms"}, {}])
def test_a_budget_is_dumped_as_a_recipe_has_it(bound):
    settings = BudgetSettings.model_validate({**bound, "context": 0})
    dumped = settings.model_dump(mode="json")
    assert [name for name in dumped if name in BUDGETS] == [*(bound or ["keep"])]
    assert BudgetSettings.model_validate(dumped) == settings
    assert load_recipe(Recipe(budget=settings), ["search.generations=1"]).budget == settings
    assert settings.model_dump(exclude_unset=True).keys() == {*bound, "context"}
    assert settings.model_dump(include={"context"}) == {"context": 0}


class Rows(Bound):
    """A budget with a setting of its own."""

    metavar, help = "ROWS", "Rows."
    value: int
    height: int = 1

    def costs(self, model):
        return CostModel("rows", ((0, self.height),))


def test_a_registered_budget_is_named_as_those_of_the_package():
    BUDGETS.register("rows")(Rows)
    try:
        assert load_recipe(None, ["budget.rows=7"]).budget.bound == Rows(value=7)
        settings = load_recipe(None, (), options(rows={"value": 7, "height": 2})).budget
        assert (settings.kind, settings.bound) == ("rows", Rows(value=7, height=2))
        assert settings.model_dump(mode="json")["rows"] == {"value": 7, "height": 2}
        with pytest.raises(RecipeError, match=r"budget\.rows\.height: must be a valid integer"):
            load_recipe(None, (), options(rows={"value": 7, "height": "tall"}))
    finally:
        BUDGETS.remove("rows")


@pytest.mark.parametrize("recipe", [(None, (), {"preset": "paper"}), ("llama2-7b-2.7b",)])
def test_the_paper_preset_has_the_papers_numbers(recipe):
    chosen = load_recipe(*recipe)
    search = chosen.search
    assert (chosen.units.attention, chosen.units.levels) == ("query_head", "paper")
    assert isinstance(chosen.database.metric, OutputError)
    assert (chosen.text.looking_back, chosen.text.openings, chosen.refit.tokens) == (0, 0, 0)
    assert isinstance(search.method, PaperMethod)
    assert (search.generations, search.offspring) == (200, 16)
    assert [each.survivors for each in search.rounds] == [8, 4, 2, 1]
    assert [each.tokens for each in search.rounds] == [1024, 2048, 4096, 8192]
    assert [each.training_tokens for each in search.rounds] == [10_000, 50_000, 100_000, 200_000]


def test_what_the_user_gives_goes_before_the_preset(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("preset: paper\nsearch: {generations: 5, method: gradient}\n", encoding="utf-8")
    recipe = load_recipe(path, ["text.looking_back=10%"])
    assert isinstance(recipe.search.method, GradientMethod)
    assert (recipe.search.generations, recipe.search.offspring) == (5, 16)
    assert recipe.text.looking_back == 0.1
    assert recipe.units.levels == "paper"


ATTENTION = ModuleLevels(
    0,
    "attention",
    (
        Level(LayerSizes("attention"), 0),
        Level(LayerSizes("attention", 8, groups=1, head_dim=4), 100),
        Level(LayerSizes("attention", 16, groups=2, head_dim=4), 200),
    ),
)
MLP = ModuleLevels(
    1, "mlp", (Level(LayerSizes("mlp"), 0), Level(LayerSizes("mlp", 8), 70), Level(LayerSizes("mlp", 24), 210))
)
SPACE = SearchSpace((ATTENTION, MLP))


def test_what_removed_modules_leave_goes_with_the_last_one_of_a_block():
    """Norms of 5 and 7 parameters stay in block 0, and 3 of a module that was removed before in block 1."""
    attention, mlp = (
        ModuleLevels(0, kind, (Level(LayerSizes(kind), left), Level(LayerSizes(kind, 8), 100)))
        for kind, left in (("attention", 5), ("mlp", 7))
    )
    kept = ModuleLevels(2, "attention", (Level(LayerSizes("attention", 8), 50),))  # level 0 is the whole module
    space = SearchSpace((attention, mlp, MLP, kept), {1: 3, 2: 9})
    for allocation, expected in {
        (1, 1, 2, 0): 200 + 210 + 3 + 50 + 9,
        (0, 1, 2, 0): 105 + 210 + 3 + 50 + 9,
        (0, 0, 2, 0): 210 + 3 + 50 + 9,
        (0, 0, 0, 0): 50 + 9,
    }.items():
        assert space.params(allocation) == parameter_costs(space).of(allocation) == expected


def test_a_tolerance_below_one_level_is_one_level():
    bounds = resolve_budget(parameter_costs(SPACE), BudgetSettings(keep=0.5, tolerance=0.0001))
    assert (bounds.lower, bounds.upper) == (105, 205)
    fine = CostModel("block parameters", (tuple(range(0, 10_001)),))
    assert resolve_budget(fine, BudgetSettings(keep=0.5, tolerance=0.1)).lower == 4500
    coarse = CostModel("block parameters", ((0, 10), (0, 12)))
    assert resolve_budget(coarse, BudgetSettings(keep=0.5)).lower == 10, "some module stays"


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        ({"keep": 0.5}, 205),
        ({"params": 205}, 205),
        ({"speedup": 2}, 205),
        ({"keep": 1 / 3}, 136),
        ({"speedup": 3}, 136),
    ],
)
def test_bounds_use_the_budget_and_no_more(budget, limit):
    bounds = resolve_budget(parameter_costs(SPACE, fixed=0), BudgetSettings(**budget, tolerance=0.1))
    assert bounds.limit == limit
    assert bounds.allows(limit)
    assert not bounds.allows(limit + 1)
    assert bounds.lower == max(limit - 100, 70), "one level of the attention is more than a tenth of the budget"


def test_what_is_not_pruned_counts_too():
    bounds = resolve_budget(parameter_costs(SPACE, fixed=1000), BudgetSettings(params=1200))
    assert (bounds.limit, bounds.upper) == (1200, 200)
    assert bounds.words == "1,100 and 1,200 parameters"
    assert Budget(0, 1 << 30, "bytes", 1 << 30).words == "1.07 GB and 2.15 GB"
    assert Budget(10**6, 2 * 10**6, "nanoseconds").words == "1 ms and 2 ms"


@pytest.mark.parametrize(
    ("allocation", "block_params", "params"), [((1, 1), 171, 1170), ((1, 1), 170, 1171), ((2, 1), 270, 1270)]
)
def test_a_saved_model_that_is_not_the_planned_one_is_refused(allocation, block_params, params):
    """The last check of every run, on the parameters of the saved model itself."""
    problem = Problem(SPACE, parameter_costs(SPACE), Budget(100, 205), outside=1000)
    settings = BudgetSettings()
    search = SimpleNamespace(allocation=(1, 1))
    dense, saved = (SimpleNamespace(block_params=size, params=size + 1000) for size in (410, 170))
    models = {"dense": dense, "refit": saved}
    found = _budget(settings, problem, search, models)
    assert (found.used, found.upper, found.unused, found.block_params) == (170, 205, 1 - 170 / 205, 170)
    search.allocation, saved.block_params, saved.params = allocation, block_params, params
    with pytest.raises(BudgetError, match=r"were planned for a budget of 205 block parameters: please report this"):
        _budget(settings, problem, search, models)


IN_TIME = CostModel("nanoseconds", ((0, 2_000_000), (0, 3_000_000)), 1_000_000)


@pytest.mark.parametrize(
    ("cost", "budget", "said"),
    [
        (
            parameter_costs(SPACE, fixed=1000),
            {"params": 900},
            r"budget\.params: 900 parameters requested, less than .*1,070 parameters; the largest is 1,410",
        ),
        (
            parameter_costs(SPACE, fixed=1000),
            {"params": 2000},
            "more than the whole model.*the smallest is 1,070 parameters, the largest 1,410",
        ),
        (IN_TIME, {"speedup": 30}, r"30x means 0\.2 ms of 6 ms.*smallest.* 3 ms \(2\.00x\)"),
        (parameter_costs(SearchSpace(())), {}, "no attention and no MLP"),
    ],
)
def test_an_impossible_budget_names_the_smallest_and_the_largest(cost, budget, said):
    with pytest.raises(BudgetError, match=said):
        resolve_budget(cost, BudgetSettings(**budget))
