"""`darwinlm prune` when all is well, and the command as a process of its own."""

import json
import re
from dataclasses import replace
from unittest.mock import Mock

import pytest
from tests.tiny.command import Ended
from tests.tiny.process import python

from darwinlm.execution.run import Run
from darwinlm.planning import devices


def test_the_process_ends_with_status_2_and_one_message(tmp_path):
    done = python("-m", "darwinlm", "prune", tmp_path / "nowhere", "--out", tmp_path / "out", status=2)
    Ended(2, done.stdout, done.stderr).refused("there is no model at")


def test_prune_prints_its_plan_the_table_and_where_things_are_and_then_that_it_reuses(prune, tmp_path):
    ended = prune("--keep", "60%").succeeded()
    assert ended.err == ""
    assert "planned:" in ended.out
    for word in ("dense", "uniform", "searched", "refit", "the river …"):
        assert word in ended.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert f"{summary['budget']['block_params']:,} of {summary['budget']['dense_block_params']:,}" in ended.out
    for name in ("model", "report.html", "summary.json"):
        assert str(tmp_path / "out" / name) in ended.out
        assert (tmp_path / "out" / name).exists()
    times = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
    again = prune("--keep", "60%").succeeded()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {stage["name"]: stage["seconds"] for stage in summary["stages"]} == times
    assert again.out.count("already done, reused") == len(summary["stages"]) > 8
    assert "planned:" not in again.out


@pytest.mark.parametrize(
    ("load", "card", "said"),
    [
        (0.0, {}, r"planned: [\d.]+ (s|min) if nothing else runs, [\d.]+ [kMG]B of memory"),
        (
            900.0,
            {},
            r"planned: [\d.]+ (s|min) if nothing else runs \(load 900.0 on \d+ cores: it takes longer\), [\d.]+ [kMG]B",
        ),
        (0.0, {"memory": 1e6}, r"doesn't fit: \w[\w ]* needs [\d.]+ [kMG]B of memory, but cpu has"),
    ],
)
def test_the_plan_is_told_before_the_first_stage(prune, monkeypatch, load, card, said):
    known = devices.find_device("cpu")
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(devices, "device_here", lambda _: replace(known, **card))
    monkeypatch.setattr(Run, "until", Mock(side_effect=KeyboardInterrupt))
    ended = prune()
    assert ended.code == 130
    assert re.search(said, ended.out)
    assert re.search(r"at most [\d.]+ (s|min) of it for the latency table", prune("--speedup", "2x").out)


def test_a_speedup_out_of_reach_is_refused_before_the_latency_table(prune):
    ended = prune("--speedup", "1000x")
    ended.refused("speedup: 1000x is out of reach")
    assert "at most" in ended.out
    assert "whole models are predicted" not in ended.out


def test_a_chat_template_that_fails_is_told_and_the_run_ends_well(prune, model_copy):
    (model_copy / "chat_template.jinja").write_text("{{ 1/0 }}")
    ended = prune("--set", "evaluation.answer_tokens=0", "--set", "search.generations=1", model=model_copy)
    said = "evaluate: answers continue text: the model's chat template fails (division by zero)"
    assert said in " ".join(ended.succeeded().out.split())
