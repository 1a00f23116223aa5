"""Choices of levels: the knapsack and equal layers against trying all, what slopes and curvature predict."""

import itertools
import random
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from darwinlm.model.layer_sizes import LayerSizes
from darwinlm.model.units.cost import CostModel, parameter_costs
from darwinlm.model.units.levels import Level, ModuleLevels
from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.runtime.errors import BudgetError
from darwinlm.steps.budget.equal import EqualLayers, equal_layers
from darwinlm.steps.budget.problem import Budget, Problem
from darwinlm.steps.search import knapsack
from darwinlm.steps.search.guided_children import SHRINK, SLOPE_PARTS, STRENGTHS, credible_strength, solved_children
from darwinlm.steps.search.knapsack import solve_knapsack
from darwinlm.steps.search.prediction import Curvature, Surrogate, first_order


def total(table, choice):
    return sum(row[index] for row, index in zip(table, choice, strict=True))


def brute_force(losses, costs, lower, upper):
    """Least loss of all choices within the bounds, None when there is none."""
    choices = itertools.product(*(range(len(row)) for row in losses))
    allowed = [total(losses, choice) for choice in choices if lower <= total(costs, choice) <= upper]
    return min(allowed, default=None)


def problem(seed, *, scale=1):
    """Losses that fall and costs that grow with the level, as a module's do; and bounds that bite."""
    rng = random.Random(seed)
    losses, costs = [], []
    for _ in range(rng.randint(1, 5)):
        n_levels = rng.randint(1, 5)
        losses.append(sorted((rng.uniform(0, 3) for _ in range(n_levels)), reverse=True))
        costs.append([scale * cost for cost in sorted(rng.sample(range(60), n_levels))])
    most = sum(row[-1] for row in costs)
    upper = rng.randint(0, most + 1)
    return losses, costs, int(upper * rng.choice((0.0, 0.5, 0.9))), upper


@pytest.mark.parametrize("scale", [1, 1_000_003])
@pytest.mark.parametrize("seed", range(60))
def test_it_finds_the_best_choice(seed, scale):
    losses, costs, lower, upper = problem(seed, scale=scale)
    best = brute_force(losses, costs, lower, upper)
    if best is None:
        with pytest.raises(BudgetError):
            solve_knapsack(losses, costs, lower, upper)
        return
    chosen = solve_knapsack(losses, costs, lower, upper)
    assert lower <= total(costs, chosen) <= upper
    assert total(losses, chosen) == pytest.approx(best)


@pytest.mark.parametrize(("lower", "upper"), [(0, 4), (100, 200), (11, 14)])
def test_bounds_that_no_choice_keeps(lower, upper):
    costs = [[5, 10], [0, 5]]
    with pytest.raises(BudgetError, match=rf"between {lower} and {upper} block parameters"):
        solve_knapsack([[1.0, 0.0], [1.0, 0.0]], costs, lower, upper)


@pytest.mark.parametrize("excess", [1, 10, 40])
def test_a_budget_of_millions_is_kept_to_the_last_parameter(excess):
    """Too many totals to tell them all apart, but one parameter too many is still too many."""
    upper = 100_000_000
    assert solve_knapsack([[1.0, 0.5, 0.0]], [[10, upper, upper + excess]], 0, upper) == (1,)
    with pytest.raises(BudgetError):
        solve_knapsack([[1.0, 0.0]], [[10, upper + excess]], upper // 2, upper)


def test_a_budget_that_falls_between_two_sizes_is_refused_without_a_search(monkeypatch):
    """Every cost is a multiple of 48 and no multiple lies within the bounds."""
    monkeypatch.setattr(knapsack, "_solved", lambda *_: pytest.fail("the search was begun"))
    attention = [0, 1584, 2352, 3120, 4656, 4656, 6960]
    mlp = [0, *(48 + 1152 * level for level in range(1, 13))]
    costs = [attention, mlp] * 4
    with pytest.raises(BudgetError):
        solve_knapsack([[1 - cost / row[-1] for cost in row] for row in costs], costs, 46_242, 46_247)


def many(modules, levels, *, regular, seed=0):
    """Losses that fall with the level as those of modules do, and costs with or without a common divisor."""
    rng = np.random.default_rng(seed)
    kept = np.arange(levels) / (levels - 1)
    losses = [
        (np.exp(rng.normal()) * (1 - kept) ** rng.uniform(1, 3) + rng.normal(0, 1e-3, levels)).tolist()
        for _ in range(modules)
    ]
    odd = [[0 if regular else int(rng.integers(10_000)) for _ in range(levels)] for _ in range(modules)]
    sizes = [[(2 if module % 2 else 1) * 1_000_000 * level for level in range(levels)] for module in range(modules)]
    return losses, [[size + more for size, more in zip(*rows, strict=True)] for rows in zip(sizes, odd, strict=True)]


def bound(losses, costs, upper):
    """The largest of Lagrange's lower bounds on the loss of any choice below `upper`."""
    tables = [(np.asarray(row), np.asarray(price) / upper) for row, price in zip(losses, costs, strict=True)]
    factors = np.geomspace(0.1, 1e3, 4000)
    return max(sum(float((row + factor * price).min()) for row, price in tables) - factor for factor in factors)


@pytest.mark.parametrize("regular", [True, False])
def test_a_choice_among_many_modules_is_close_to_what_is_possible(regular):
    """Without a common divisor, totals are rounded."""
    losses, costs = many(40, 17, regular=regular)
    upper = sum(row[-1] for row in costs) // 2
    chosen = solve_knapsack(losses, costs, int(0.995 * upper), upper)
    assert 0.995 * upper <= total(costs, chosen) <= upper
    least = bound(losses, costs, upper)
    assert least * (1 - 1e-9) <= total(losses, chosen) <= 1.005 * least


def test_a_narrow_budget_is_met_by_telling_more_totals_apart(monkeypatch):
    monkeypatch.setattr(knapsack, "CELLS", 50)
    monkeypatch.setattr(knapsack, "TABLE", 4 << 10)
    costs = [[0, 333_334], [0, 333_335], [0, 333_337], [0, 5_000_000]]
    solved, cells = knapsack._solved, []
    monkeypatch.setattr(knapsack, "_solved", lambda *given: cells.append(given[-1]) or solved(*given))
    assert solve_knapsack([[1.0, 0.0]] * 4, costs, 1_000_000, 1_005_000) == (1, 1, 1, 0)
    assert cells == [50, 1024]


LOSSES = [[3.0, 1.0, 0.0], [2.0, 1.5, 0.0], [1.0, 0.2, 0.0]]
SLOPES = [[0.5, 0.0, -0.4], [0.0, 0.1, 0.3], [0.2, 0.2, 0.2]]
CURVATURE = Curvature(LOSSES, [None] * 3)
PARENT = (1, 1, 1)
COSTS = [[0, 5, 10]] * 3
COST = CostModel("block parameters", COSTS)
SPACE = SearchSpace(())
PROBLEM = Problem(SPACE, COST, Budget(15, 15))


def children(count, seed=0):
    rng = random.Random(seed)
    return [tuple(rng.randrange(3) for _ in LOSSES) for _ in range(count)]


def test_levels_are_as_far_apart_as_what_only_one_of_them_removes():
    for index, row in enumerate(LOSSES):
        assert CURVATURE.around(index, 2) == pytest.approx(row), "around the dense model"
    assert CURVATURE.around(0, 1) == pytest.approx([2.0, 0.0, 1.0]), "nested levels"
    losses = [[0.3, 0.2, 0.0]]
    apart = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert Curvature(losses, [apart]).around(0, 1)[0] == pytest.approx(0.5)
    within = np.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])  # what level 1 removes, level 0 does too
    assert Curvature(losses, [within]).around(0, 1)[0] == pytest.approx(0.5 - 2 * 0.15)


def test_the_model_is_of_second_order():
    assert first_order(SLOPES, PARENT, (0, 2, 2)) == pytest.approx(0.5 + 0.2)
    assert first_order(SLOPES, PARENT, PARENT) == 0
    curved = CURVATURE.around(0, 1)[2] + CURVATURE.around(1, 1)[0]
    for weight in (1.0, 2.0):
        predicted = Surrogate(CURVATURE, SLOPES, curvature_weight=weight).change(PARENT, (2, 0, 1))
        assert predicted == pytest.approx(-0.4 - 0.1 + weight * curved)


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0, 3.0])
def test_the_weight_of_curvature_is_learnt_and_slopes_count_as_they_are(true):
    seen = []
    for child in children(60):
        slope = first_order(SLOPES, PARENT, child)
        seen.append((PARENT, child, true * CURVATURE.between(PARENT, child).sum() + slope, slope))
    learnt = Surrogate(CURVATURE, SLOPES, seen)
    assert learnt.weights == pytest.approx([true] * 3, rel=0.05)
    errors = [abs(learnt.change(PARENT, child) - change) for _, child, change, _ in seen]
    assert max(errors) < 0.05 * max(abs(change) for *_, change, _ in seen)


FLAT = [[0.0] * 3] * 3


def test_a_module_that_matters_more_than_its_loss_says_is_found_out():
    seen = [(PARENT, child, 4 * CURVATURE.around(1, 1)[child[1]], 0.0) for child in children(60, seed=1)]
    learnt = Surrogate(CURVATURE, FLAT, seen)
    assert learnt.weights[1] > 3 > 1 > max(learnt.weights[0], learnt.weights[2])


def least(losses):
    """The best allocation of the budget, by trying all."""
    every = (each for each in itertools.product(range(3), repeat=3) if sum(5 * level for level in each) == 15)
    return min(every, key=lambda each: sum(row[level] for row, level in zip(losses, each, strict=True)))


def test_children_are_the_best_of_what_the_model_says():
    surrogate = Surrogate(CURVATURE, [[9.0, 0.0, -9.0], [-5.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    found = solved_children(PARENT, surrogate, PROBLEM, strengths=STRENGTHS)
    expected = dict.fromkeys(least(surrogate.losses(PARENT, strength)) for strength in STRENGTHS)
    assert (2, 0, 1) in found
    assert found == [each for each in expected if each != PARENT]


def test_children_of_the_first_parent_are_also_those_of_corrected_curves():
    slopes = np.array([[0.0, 0.0, -9.0], [-4.0, 0.0, 5.0], [0.0, 0.0, 0.0]])
    surrogate = Surrogate(CURVATURE, slopes)
    found = solved_children(PARENT, surrogate, PROBLEM, strengths=STRENGTHS, slope_parts=SLOPE_PARTS)
    expected = [least(np.array(LOSSES) + part * slopes) for part in SLOPE_PARTS]
    assert {each for each in expected if each != PARENT} <= set(found)
    assert set(expected) - {PARENT}


@pytest.mark.parametrize(("loss", "shortened"), [(30.0, False), (10.0, True), (1.0, True)])
def test_steps_are_as_short_as_slopes_are_credible(loss, shortened):
    surrogate = Surrogate(CURVATURE, [[9.0, 0.0, -9.0], [-5.0, 0.0, 5.0], [-4.0, 0.0, -2.0]])

    def promised(factor):
        found = solved_children(PARENT, surrogate, PROBLEM, strengths=[STRENGTHS[0] * factor])
        return min((first_order(surrogate.slopes, PARENT, child) for child in found), default=0.0)

    factor = credible_strength(PARENT, surrogate, PROBLEM, loss)
    assert promised(1.0) == -14.0
    assert promised(factor) >= -loss, "no child gains more than the whole loss"
    assert (factor > 1) == shortened
    assert not shortened or promised(factor / SHRINK) < -loss, "steps are no shorter than that"
    assert credible_strength(PARENT, surrogate, replace(PROBLEM, equal=equal(54)), loss) == 1, (
        "sizes of all layers jump"
    )


def test_the_parent_is_no_child_of_its_own_and_there_may_be_none():
    flat = Surrogate(CURVATURE, [[0.0] * 3] * 3)
    assert PARENT not in solved_children(PARENT, flat, PROBLEM, strengths=STRENGTHS, slope_parts=SLOPE_PARTS)
    impossible = Problem(SPACE, COST, Budget(16, 17))
    assert solved_children(PARENT, Surrogate(CURVATURE, SLOPES), impossible, strengths=(1.0,)) == []


ROWS = {"attention": (0, 3, 5, 8), "mlp": (0, 2, 4, 6, 8, 10)}
BLOCKS = 3


def space_of_blocks() -> SearchSpace:
    return SearchSpace(
        tuple(
            ModuleLevels(block, kind, tuple(Level(LayerSizes(kind, size), size) for size in ROWS[kind]))
            for block, kind in product(range(BLOCKS), ROWS)
        )
    )


def equal(upper: int, *, removable: bool = True, refused: tuple[int, ...] = ()) -> EqualLayers:
    """`refused` are levels of the attention."""
    space = space_of_blocks()
    runs = lambda allocation: "not this size" if allocation[0] in refused else None  # noqa: E731
    return equal_layers(space, parameter_costs(space), upper, runs=runs, removable=removable)


def everything(upper: int, *, removable: bool = True) -> list[Allocation]:
    """All allocations with equal layers within a budget, one by one."""
    cost = parameter_costs(space_of_blocks())
    sets = product((True, False), repeat=BLOCKS) if removable else [(True,) * BLOCKS]
    sizes = product(range(1, 4), range(1, 6))
    found = [
        tuple(level for stays in standing for level in (pair if stays else (0, 0)))
        for standing, pair in product([each for each in sets if any(each)], sizes)
    ]
    return [each for each in found if cost.of(each) <= upper]


@pytest.mark.parametrize("removable", [True, False])
@pytest.mark.parametrize("upper", [14, 27, 33, 54])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_is_the_best_of_all(upper, removable, seed):
    rng = random.Random(seed)
    losses = [sorted((rng.random() for _ in ROWS[kind]), reverse=True) for _ in range(BLOCKS) for kind in ROWS]
    choices = everything(upper, removable=removable)
    loss = lambda each: sum(row[level] for row, level in zip(losses, each, strict=True))  # noqa: E731
    if not choices:
        with pytest.raises(BudgetError, match="no model with equal layers"):
            equal(upper, removable=removable).best(losses)
        return
    best = equal(upper, removable=removable).best(losses)
    assert loss(best[0]) == pytest.approx(min(map(loss, choices)))
    assert set(best) <= set(choices)
    assert [loss(each) for each in best] == sorted(loss(each) for each in best)
    assert set(equal(upper, removable=removable).first(losses)) <= set(best)


def test_neighbours_are_equal_layers_within_the_budget_that_lead_everywhere():
    space, choices = equal(33), set(everything(33))
    seen, queue = set(), space.best([[0.0] * 4, [0.0] * 6] * BLOCKS)[:1]
    while queue:
        allocation = queue.pop()
        seen.add(allocation)
        around = space.neighbours(allocation)
        assert allocation not in around
        assert set(around) <= choices
        queue += [each for each in around if each not in seen]
    standing = {tuple(bool(each[index]) for index in range(0, 2 * BLOCKS, 2)) for each in seen}
    assert standing == {tuple(bool(each[index]) for index in range(0, 2 * BLOCKS, 2)) for each in choices}
    assert {max(each[::2]) for each in seen} == {1, 2, 3}


def test_sizes_that_do_not_run_are_left_out():
    found = equal(54, refused=(1, 2))
    assert {max(each[::2]) for each in found.best([[0.0] * 4, [0.0] * 6] * BLOCKS)} == {3}
    with pytest.raises(BudgetError, match="not this size"):
        equal(54, refused=(1, 2, 3))


def test_one_block_remains():
    assert equal(54).smallest == 5
    assert equal(54, removable=False).smallest == 15
    assert replace(equal(54), upper=4).smallest == 5


def test_an_attention_stays_beside_mixers_of_another_kind():
    """Their blocks can be removed; without any attention, transformers' cache doesn't know the length of a text."""
    kinds = [("mixer", "mlp"), ("attention", "mlp"), ("mixer", "mlp"), ("attention", "mlp")]
    rows = ROWS | {"mixer": (0, 4)}
    modules = (
        ModuleLevels(block, kind, tuple(Level(LayerSizes(kind, size), size) for size in rows[kind]))
        for block, pair in enumerate(kinds)
        for kind in pair
    )
    space = SearchSpace(tuple(modules))
    found = equal_layers(space, parameter_costs(space), 1000, runs=lambda _: None, removable=True)
    assert found.blocks == ((0, 1), (4, 5), (6, 7))
