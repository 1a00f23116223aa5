"""Where a search starts when the recipe leaves it open."""

from __future__ import annotations

import pytest

from darwinlm.recipe import load_recipe


@pytest.mark.parametrize(
    ("settings", "estimated", "start"),
    [
        ((), True, "uniform"),
        ((), False, "knapsack"),
        (("search.score_levels=2",), True, "knapsack"),
        (("search.score_levels=0",), True, "uniform"),
        (("search.score_levels=0",), False, "knapsack"),
        (("search.descent_steps=0",), True, "knapsack"),
        (("search.slope_tokens=0",), True, "knapsack"),
        (("search.start=knapsack",), True, "knapsack"),
        (("search.start=ziplm",), True, "ziplm"),
        (("search.start=uniform",), False, "uniform"),
    ],
)
def test_a_start_that_is_left_open_follows_what_comes_after_it(settings, estimated, start):
    assert load_recipe(None, ("model=M", *settings)).search.first_parent(estimated=estimated) == start
