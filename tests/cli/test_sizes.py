"""Budgets, presets and families on the command line: one message for what is wrong, and what a family leaves."""

from __future__ import annotations

import json

import pytest
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import Ended, command_runner


@pytest.fixture
def command(monkeypatch, capsys):
    return command_runner(monkeypatch, capsys)


@pytest.fixture
def prune(command, tiny_llama, tiny_text_file, tmp_path):
    """Prune with tiny settings into tmp_path/out."""

    def run(*more: object) -> Ended:
        settings = [part for assignment in SETTINGS for part in ("--set", assignment)]
        return command("prune", tiny_llama, "--out", tmp_path / "out", "--text", tiny_text_file, *settings, *more)

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--keep", "50%", "--params", "1M"), "budget: give one bound only, not keep and params at once"),
        (("--speedup", "2x", "--latency", "1s"), "not speedup and latency at once"),
        (("--params", "2.7Q"), "budget.params: has an unknown unit 'Q'"),
        (("--bytes", "4 gigs"), "budget.bytes: has an unknown unit 'gigs'"),
        (("--latency", "30"), "budget.latency: needs a unit"),
        (("--speedup", "0.5"), "budget.speedup: must be at least 1"),
        (("--params", "10T"), "more than the whole model: there is nothing to prune; the smallest is"),
        (("--params", "1k"), "less than the smallest model that the units allow"),
        (("--bytes", "1kB"), "budget.bytes: 1000 bytes is asked for, less than the smallest model"),
        (("--time", "3d"), "search.minutes: has an unknown unit 'd'"),
        (("--preset", "papers"), "preset: Input should be 'default' or 'paper'"),
        (("--keep", "75%,75%"), "budget.keep: a value is there twice"),
        (("--keep", "75%,high"), "budget.keep"),
        (("--set", "search.generations=0"), "search.generations"),
        (("--set", "search.finalists=4"), "candidates train on 65536 tokens, but text.training_tokens is 0"),
        (
            ("--set", "text.training_tokens=900000"),
            "text.training_tokens.",
        ),
    ],
)
def test_one_message_for_what_is_wrong(prune, tmp_path, options, said):
    prune(*options).refused(said)
    assert not (tmp_path / "out" / "model").exists()


def test_a_family_from_the_command_line(prune, tmp_path):
    ended = prune("--keep", "80%,50%")
    assert ended.code == 0, ended
    assert "size against loss" in ended.out
    rows = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert [row["name"] for row in rows] == ["dense", "keep-80", "keep-50"]
    for name in ("keep-80", "keep-50"):
        assert (tmp_path / "out" / name / "model" / "config.json").is_file()
        assert (tmp_path / "out" / name / "report.html").is_file()
