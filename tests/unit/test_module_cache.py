"""What a cache of modules keeps when its room gets scarce."""

from torch import nn

from darwinlm.search.evaluate.module_cache import ModuleCache


class Mlp(nn.Module):
    """120 bytes, 40 of them the output projection."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(2, 10, bias=False)
        self.down = nn.Linear(10, 1, bias=False)


def fill(room, keys):
    cache = ModuleCache(lambda reserved: room - reserved)
    modules = {key: Mlp() for key in keys}
    for key in keys:
        cache.put(key, modules[key], "down.weight")
    return cache, modules


def kept(cache, keys):
    whole = [key for key in keys if cache.module(key) is not None]
    return whole, [key for key in keys if cache.output(key) is not None]


def test_while_there_is_room_modules_stay_whole():
    cache, modules = fill(360, "abc")
    assert kept(cache, "abc") == (["a", "b", "c"], [])
    assert cache.module("a") is modules["a"]


def test_then_those_used_longest_ago_are_their_output_projections():
    cache, modules = fill(360, "abc")
    cache.module("a")
    cache.put("d", Mlp(), "down.weight")
    assert kept(cache, "abcd") == (["a", "d"], ["b", "c"])
    assert cache.output("b") is not None
    assert cache.output("b").data_ptr() == modules["b"].down.weight.data_ptr()


def test_at_last_the_first_projections_are_dropped():
    cache, _ = fill(100, "abcd")
    assert kept(cache, "abcd") == ([], ["c", "d"])


def test_a_module_that_is_whole_again_counts_once():
    cache, modules = fill(200, "abc")
    assert kept(cache, "abc") == (["c"], ["a", "b"])
    cache.put("a", modules["a"], "down.weight")
    assert kept(cache, "abc") == (["a"], ["b", "c"])


def test_what_is_reserved_for_others_is_not_room():
    cache, _ = fill(360, "abc")
    cache.reserve(240)
    assert kept(cache, "abc") == ([], [])
    cache.put("d", Mlp(), "down.weight")
    cache.put("e", Mlp(), "down.weight")
    assert kept(cache, "de") == ([], ["d", "e"])
