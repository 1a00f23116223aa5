"""`python -m lab tradeoff`: files of a model and of smaller ones, measured in llama.cpp."""

import json
from dataclasses import replace

import pytest
from tests.tiny.checkpoint import SETTINGS, tiny_text
from tests.tiny.pruned import plain_checkpoint

from darwinlm.formats.gguf.engine import ENGINES
from darwinlm.model.quantisation import LLAMA_CPP
from lab.tradeoff.table import front

FAST = ("--tokens", 96, "--prompt-tokens", 24, "--new-tokens", 4, "--runs", 2)
CHEAP = ("units.mlp_multiple=32", "refit.tokens=0", "search.generations=1")


@pytest.fixture
def given(tmp_path):
    """A model, its text, another text and an output folder, as arguments."""
    plain_checkpoint(tmp_path / "model", "llama")
    text = tiny_text(tmp_path / "text.txt")
    sets = [part for setting in (*SETTINGS, *CHEAP) for part in ("--set", setting)]
    out = ("--held-out", tiny_text(tmp_path / "other.txt", seed=3), "--out", tmp_path / "out")
    return (tmp_path / "model", "--keep", "70%", "--text", text, *out, *sets)


def test_every_file_is_measured_and_the_front_is_drawn(command, given, tmp_path):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    ended = command("tradeoff", *given, *FAST, "--quant", "f16,q8_0,q2_k").succeeded()
    found = json.loads((tmp_path / "out" / "tradeoff.json").read_text())
    names = [(row["model"], row["quantisation"]) for row in found["rows"]]
    assert names == [(model, kind) for model in ("dense", "keep-70") for kind in ("f16", "q8_0", "q2_k")]
    by_name = dict(zip(names, found["rows"], strict=True))
    for row in found["rows"]:
        assert row["bytes"] == (tmp_path / "out" / row["file"]).stat().st_size
        assert all(row[rate]["low"] <= row[rate]["median"] <= row[rate]["high"] for rate in ("prompt", "decode"))
    assert by_name["dense", "f16"]["kl"] < 1e-3 < by_name["dense", "q2_k"]["kl"]
    for kind in ("f16", "q8_0", "q2_k"):
        assert by_name["keep-70", kind]["bytes"] < by_name["dense", kind]["bytes"]
        assert by_name["keep-70", kind]["kl"] > by_name["dense", kind]["kl"]
    assert {path.name for path in (tmp_path / "out" / "files").iterdir()} == {"dense", "keep-70"}
    stages = {path.name for path in (tmp_path / "out" / "sizes").glob("**/stages/*")}
    assert "export" in stages  # and nothing that only a report shows
    assert not stages & {"chats", "evaluate", "file", "report"}
    for name in ("size", "speed"):
        assert f"]({name}.svg)" in (tmp_path / "out" / "tradeoff.md").read_text()
        picture = (tmp_path / "out" / f"{name}.svg").read_text()
        assert all(f"<!-- {word} -->" in picture for word in ("keep-70", "f16"))
    for text in (ended.out, (tmp_path / "out" / "tradeoff.md").read_text()):
        assert "keep-70" in text
        assert "Least loss for its size" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--quant", "q4_k_x"), "--quant q4_k_x: llama.cpp quantises to"),
        (("--quant", "q8_0,q8_0"), "name each type once"),
        (("--held-out", "nowhere.txt"), "nowhere.txt"),
        (("--keep", "70%,70%"), "duplicate"),
    ],
)
def test_wrong_input_ends_before_any_pruning(command, given, tmp_path, change, said):
    pytest.importorskip("cyllama", reason="comes with the extra gguf")
    words = [*given, *FAST]
    at = words.index(change[0]) if change[0] in words else len(words)
    words[at : at + 2] = change
    command("tradeoff", *words).refused(said)
    assert not (tmp_path / "out" / "sizes").exists()


def test_without_the_engine_the_extra_is_named(command, given, tmp_path, monkeypatch):
    monkeypatch.setitem(ENGINES, LLAMA_CPP, replace(ENGINES[LLAMA_CPP], package="no_such_package"))
    command("tradeoff", *given, *FAST).refused("[gguf]")
    assert not (tmp_path / "out").exists()


def test_the_front_has_what_nothing_beats():
    assert front([(3, 1.0), (1, 5.0), (2, 5.0), (2, 2.0), (4, 1.0), (5, 0.5)]) == [1, 3, 0, 5]
    assert front([(168.8, 1.6), (169.2, 0.1), (170.4, 0.05)]) == [1, 2]
