"""What is read from files is bounded before it is used."""

import json

import pytest

from darwinlm.runtime import limits
from darwinlm.runtime.limits import load_json, parse_yaml, shorten


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 99_999 + "]" * 99_999, "[1"], ids=range(4))
def test_json_that_cant_be_read(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_text("[" * 50 + "]" * 50)
    assert load_json(file)
    file.write_text(text)
    with pytest.raises(ValueError, match=r"nested|Expecting"):
        load_json(file)


def test_a_json_file_that_is_too_large(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps(list(range(100))))
    with pytest.raises(ValueError, match="more than the 50"):
        load_json(tmp_path / "a.json", 50)


def test_half_of_a_surrogate_pair_is_refused(tmp_path):
    for text in (r'{"a": "\ud83d\ude00"}', r'{"a": "\\ud83d"}'):
        (tmp_path / "a.json").write_text(text)
        assert load_json(tmp_path / "a.json") == json.loads(text)
    (tmp_path / "a.json").write_text(r'{"a": "\ud83d"}')
    with pytest.raises(ValueError, match="surrogate"):
        load_json(tmp_path / "a.json")


def test_a_recipe_that_is_too_large():
    with pytest.raises(ValueError, match=f"more than the {limits.YAML_BYTES:,}"):
        parse_yaml("#" * (limits.YAML_BYTES + 1))


@pytest.mark.parametrize(
    "value",
    ["a" * 10**7, "a\n" * 10**5, list(range(10**6)), {"a": ["b" * 10**6] * 100}, 10**5000, ("x",) * 10**6],
    ids=range(6),
)
def test_a_value_is_shown_on_one_short_line(value):
    shown = shorten(value)
    assert len(shown) < 100
    assert "\n" not in shown
