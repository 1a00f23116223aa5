"""`darwinlm prune` when all is well."""

import json
import re
from unittest.mock import Mock

from darwinlm.stages.execution import plan as planning
from darwinlm.stages.execution.run import Run


def test_prune_prints_its_plan_three_lines_and_where_things_are_and_then_that_it_reuses(prune, command, tmp_path):
    ended = prune("--keep", "60%").succeeded()
    assert ended.err == ""
    assert "planned:" in ended.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    last = ended.out.splitlines()[-8:]
    assert " ".join(line.split(" ")[0] for line in last) == "size loss speed page model  darwinlm darwinlm"
    assert "of the block parameters" in last[0]
    assert re.search(r"KL [\d.]+ nats per token, where 0 means the same predictions", last[1])
    shown = command("show", tmp_path / "out").succeeded().out
    for word in ("dense", "uniform", "searched", "refit", "The capital of France is …"):
        assert word in shown
    for name in ("model", "report.html"):
        assert str(tmp_path / "out" / name) in ended.out
        assert (tmp_path / "out" / name).exists()
    times = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
    again = prune("--keep", "60%").succeeded()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {stage["name"]: stage["seconds"] for stage in summary["stages"]} == times
    assert again.out.count("already done, reused") == len(summary["stages"]) > 8
    assert "planned:" not in again.out


def test_the_plan_is_told_before_the_first_stage(prune, monkeypatch):
    monkeypatch.setattr(Run, "__call__", Mock(side_effect=KeyboardInterrupt))
    ended = prune()
    assert ended.code == 130
    assert re.search(r"planned: [\d.]+ (s|min) if nothing else runs, [\d.]+ [kMG]B of memory", ended.out)


def test_a_run_that_needs_more_memory_is_refused_before_its_first_stage(prune, monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "all_bytes", lambda _: 10_000_000)
    prune().refused("needs ", "of memory for each process", "but cpu has 10 MB")
    assert not (tmp_path / "out" / "stages").exists()


def test_a_speedup_out_of_reach_is_refused_before_the_latency_table(prune):
    ended = prune("--speedup", "1000x")
    ended.refused("speedup: 1000x is out of reach")
    assert "whole models are predicted" not in ended.out


def test_a_chat_template_that_fails_is_told_and_the_run_ends_well(prune, model_copy):
    (model_copy / "chat_template.jinja").write_text("{{ 1/0 }}")
    ended = prune("--set", "search.generations=1", model=model_copy)
    said = "evaluate: answers continue text: the model's chat template fails (division by zero)"
    assert said in " ".join(ended.succeeded().out.split())
