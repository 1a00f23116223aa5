"""The cache of cut modules under walks through the blocks, and shares of memory that pass on what they don't use."""

import math

import pytest
from torch import nn

from darwinlm.runtime import memory
from darwinlm.runtime.memory import DeviceMemory, passed_on
from darwinlm.steps.search.module_cache import ModuleCache

ONE = 4
"""Bytes of a module here."""


def module() -> nn.Module:
    return nn.Linear(1, 1, bias=False)


def walk(cache: ModuleCache, keys, parent=None) -> int:
    """Use modules in order, cutting those that aren't there; returns the hits."""
    cache.begin(parent)
    before = cache.hits
    for key in keys:
        if cache.get(key) is None:
            cache.put(key, module())
    return cache.hits - before


def cache_of(count: int) -> ModuleCache:
    return ModuleCache(lambda _: count * ONE)


def test_walks_that_need_more_than_there_is_room_for_have_hits():
    """The least recently used module is the next one, so dropping it would leave none."""
    cache = cache_of(6)
    keys = [(block, 1) for block in range(10)]
    assert [walk(cache, keys) for _ in range(4)] == [0, 6, 6, 6]


def test_modules_of_earlier_children_go_and_those_of_the_parent_stay():
    cache = cache_of(6)
    parent = [(block, 1) for block in range(4)]
    for level in range(2, 7):
        children = [(block, level) for block in range(4)]
        keys = [key for pair in zip(parent, children, strict=True) for key in pair]
        first = walk(cache, keys, parent)
        assert first == (0 if level == 2 else 4), "the parent's"
        assert walk(cache, keys) == 6, "and two of the children's, in the next round of the same generation"


def test_a_new_parent_takes_the_place_of_the_old_one():
    cache = cache_of(3)
    for level in (1, 2, 3):
        parent = [(block, level) for block in range(3)]
        walk(cache, parent, parent)
        assert walk(cache, parent) == 3


def test_a_module_that_is_too_large_is_not_kept_and_a_halved_cache_keeps_the_parents():
    cache = cache_of(4)
    cache.begin([(0, 1), (1, 1)])
    for key in ((0, 2), (1, 2), (0, 1), (1, 1)):
        cache.put(key, module())
    cache.put((5, 5), nn.Linear(10, 10))
    cache.halve()
    assert [cache.get(key) is not None for key in ((0, 2), (1, 2), (0, 1), (1, 1), (5, 5))] == [
        False, False, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ({"a": 9, "b": 9, "c": 9}, {"a": 0.5, "b": 0.3, "c": 0.2}),
        ({"a": 0.2, "b": 9, "c": 9}, {"a": 0.2, "b": 0.48, "c": 0.32}),
        ({"a": 0.2, "b": 0.3, "c": 9}, {"a": 0.2, "b": 0.3, "c": 0.5}),
        ({"a": 0.2, "b": 0.31, "c": math.inf}, {"a": 0.2, "b": 0.31, "c": 0.49}),
        ({"a": 0.1, "b": 0.1, "c": 0.1}, {"a": 0.1, "b": 0.1, "c": 0.1}),
        ({"a": 0, "b": 0, "c": math.inf}, {"a": 0, "b": 0, "c": 1}),
    ],
)
def test_parts_pass_on_what_they_dont_want(wanted, given):
    assert passed_on({"a": 0.5, "b": 0.3, "c": 0.2}, wanted) == pytest.approx(given)


def test_a_small_models_blocks_leave_their_share_to_its_modules(monkeypatch):
    """13 of 62 GB for blocks, as a 7B on a card of 80: its modules get 34 instead of 12."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 62_000)
    monkeypatch.setattr(memory, "OTHERS", 0.0)
    monkeypatch.setattr(memory, "FRAGMENTS", 0.0)
    cpu = DeviceMemory(memory.CPU)
    cpu.stage = "search"
    assert [cpu.room(part) for part in ("blocks", "factors", "modules")] == [31_000, 18_600, 12_400]
    cpu.divide({"blocks": 13_000, "factors": 15_000, "modules": math.inf})
    assert [cpu.room(part) for part in ("blocks", "factors", "modules")] == pytest.approx(
        [13_000, 15_000, 34_000], 1e-3
    )
    cpu.stage = "refit"
    assert cpu.room("blocks") == 31_000, "until the stage ends"
