"""The price of a byte in a file: types and levels that follow from it."""

import itertools

import pytest

from darwinlm.search.predict.file_types import file_costs
from darwinlm.search.predict.module_losses import FACTOR, POWER

MODULES = 3
SHARES = (0.0, 0.5, 1.0)
LOSSES = [[0.3, 0.05, 0.0], [0.1, 0.02, 0.0], [0.6, 0.2, 0.0]]
FINE, COARSE = (800_000, 0.001), (400_000, 0.02)
FIXED = 10_000


def matrix(share):
    """A matrix of which a part is kept, in two types."""
    return {name: (int(share * size), share * loss) for name, (size, loss) in {"fine": FINE, "coarse": COARSE}.items()}


TENSORS = [[[matrix(share)] if share else [] for share in SHARES] for _ in range(MODULES)]
OUTSIDE = [matrix(1.0)]


def best_of_all(bound):
    """The lowest predicted loss of every choice of levels and types within the bound."""
    found = []
    for levels in itertools.product(range(len(SHARES)), repeat=MODULES):
        shares = [SHARES[level] for level in levels] + [1.0]
        for kinds in itertools.product((FINE, COARSE), repeat=MODULES + 1):
            size = FIXED + sum(share * kind[0] for share, kind in zip(shares, kinds, strict=True))
            rounding = sum(share * kind[1] for share, kind in zip(shares, kinds, strict=True))
            alone = sum(row[level] for row, level in zip(LOSSES, levels, strict=True))
            if size <= bound:
                found.append(FACTOR * alone**POWER + rounding)
    return min(found)


@pytest.mark.parametrize("bound", [3_300_000, 2_500_000, 1_700_000, 1_300_000, 900_000])
def test_it_is_near_the_best_of_all_choices_and_within_the_bound(bound):
    found = file_costs(LOSSES, TENSORS, OUTSIDE, FIXED, bound)
    used = found.fixed + sum(row[level] for row, level in zip(found.costs, found.allocation, strict=True))
    assert used <= bound
    assert best_of_all(bound) <= found.kl * 1.0001
    assert found.kl <= best_of_all(bound) + 0.1


def test_with_room_for_everything_nothing_is_lost_but_the_finest_rounding():
    found = file_costs(LOSSES, TENSORS, OUTSIDE, FIXED, 10 * FINE[0])
    assert found.allocation == (2, 2, 2)
    assert found.kl == found.alone == pytest.approx((MODULES + 1) * FINE[1])


def test_below_the_smallest_types_of_the_whole_model_types_alone_are_not_enough():
    least = FIXED + (MODULES + 1) * COARSE[0]
    assert file_costs(LOSSES, TENSORS, OUTSIDE, FIXED, least).alone == pytest.approx((MODULES + 1) * COARSE[1])
    assert file_costs(LOSSES, TENSORS, OUTSIDE, FIXED, least - 1).alone is None


def test_below_the_smallest_model_there_is_none():
    assert file_costs(LOSSES, TENSORS, OUTSIDE, FIXED, FIXED + COARSE[0] - 1) is None
