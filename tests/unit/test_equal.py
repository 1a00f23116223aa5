"""Allocations with equal layers: the best one by enumeration is the best of all of them."""

import random
from dataclasses import replace
from itertools import product

import pytest

from darwinlm.runtime.errors import BudgetError
from darwinlm.search.equal import EqualLayers, equal_layers
from darwinlm.units.cost import parameter_costs
from darwinlm.units.levels import Level, ModuleLevels
from darwinlm.units.space import Allocation, SearchSpace

ROWS = {"attention": (0, 3, 5, 8), "mlp": (0, 2, 4, 6, 8, 10)}
BLOCKS = 3


def space_of_blocks() -> SearchSpace:
    return SearchSpace(
        tuple(
            ModuleLevels(block, kind, tuple(Level(at, at, size, size) for at, size in enumerate(ROWS[kind])))
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
        ModuleLevels(block, kind, tuple(Level(at, at, size, size) for at, size in enumerate(rows[kind])))
        for block, pair in enumerate(kinds)
        for kind in pair
    )
    space = SearchSpace(tuple(modules))
    found = equal_layers(space, parameter_costs(space), 1000, runs=lambda _: None, removable=True)
    assert found.blocks == ((0, 1), (4, 5), (6, 7))
