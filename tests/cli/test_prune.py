"""`darwinlm prune` when all is well, and the command as a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import yaml
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import Ended

import darwinlm
from darwinlm.errors import RecipeError
from darwinlm.planning import devices
from darwinlm.recipe import describe_fields, load_recipe

# ------------------------------------------------------------------------------------------------- as its own process


def process(*arguments: object) -> Ended:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(darwinlm.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "darwinlm.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_the_process_ends_with_status_2_and_one_message(tmp_path):
    process("prune", tmp_path / "nowhere", "--out", tmp_path / "out").refused("there is no model at")


def test_the_process_prints_nothing_on_stderr_when_all_is_well(tiny_llama, tiny_text_file, tiny_run_settings, tmp_path):
    settings = [part for assignment in tiny_run_settings for part in ("--set", assignment)]
    ended = process("prune", tiny_llama, "--out", tmp_path / "out", "--text", tiny_text_file, *settings)
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert str(tmp_path / "out" / "report.html") in ended.out.replace("\n", "")


# ---------------------------------------------------------------------------------------------------------- happy paths


def test_prune_prints_the_table_and_where_things_are(prune, tmp_path):
    ended = prune("--keep", "60%")
    assert ended.code == 0, ended
    assert ended.err == ""
    for word in ("dense", "uniform", "stitched", "refit", "continuations of 'the river'"):
        assert word in ended.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert f"{summary['budget']['block_params']:,} of {summary['budget']['dense_block_params']:,}" in ended.out
    for name in ("model", "report.html", "summary.json"):
        assert str(tmp_path / "out" / name) in ended.out
        assert (tmp_path / "out" / name).exists()


def test_a_run_begins_with_its_plan_and_a_resumed_one_does_not(prune, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    assert re.search(r"planned: [\d.]+ (s|min) if nothing else runs, [\d.]+ GB of memory", prune().out)
    assert "planned:" not in prune().out


def test_the_plan_of_a_busy_machine_names_its_load(prune, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (900.0, 0.0, 0.0))
    assert re.search(r"planned: [\d.]+ (s|min) at the present load 900.0 on \d+ cores, [\d.]+ GB", prune().out)


def test_what_does_not_fit_is_said_before_the_first_stage(prune, monkeypatch):
    small = replace(devices.find_device("cpu"), memory=1e6)
    monkeypatch.setattr(devices, "find_device", lambda name: small)
    said = prune().out
    assert re.search(r"doesn't fit: \w[\w ]* needs [\d.]+ GB of memory, but cpu has", said)
    assert said.index("doesn't fit") < said.index("text:")


def test_a_card_without_figures_has_no_plan(prune, monkeypatch):
    monkeypatch.setattr(devices, "find_device", Mock(side_effect=RecipeError("nothing is known of it")))
    said = prune().out
    assert "planned:" not in said
    assert "no plan: this GPU's figures aren't known" in said


def test_a_second_prune_says_that_it_reuses(prune):
    assert prune().code == 0
    ended = prune()
    assert ended.code == 0
    assert ended.out.count("done before, reused") == 9


def test_until_search_stops_there(prune, tmp_path):
    ended = prune("--until", "search")
    assert ended.code == 0
    assert "stopped after search" in ended.out
    assert sorted(path.name for path in (tmp_path / "out" / "stages").iterdir()) == [
        "database",
        "plan",
        "saliency",
        "search",
        "text",
    ]
    assert not (tmp_path / "out" / "model").exists()


def test_a_recipe_file_does_what_options_do(command, tiny_llama, tiny_text_file, tmp_path):

    recipe = load_recipe(None, SETTINGS, {"model": str(tiny_llama), "text.source": str(tiny_text_file)})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    ended = command("prune", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "out", "--until", "plan")
    assert ended.code == 0, ended
    assert "stopped after plan" in ended.out


def test_schema_prints_every_field(command):
    ended = command("schema", "all")
    assert ended.code == 0
    for name, _, _ in describe_fields():
        assert name in ended.out


def test_schema_is_readable_in_a_narrow_terminal(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    ended = command("schema", "all")
    assert ended.code == 0
    assert "budget.keep" in ended.out


def test_version(command):
    ended = command("version")
    assert ended.code == 0
    assert ended.out.strip() == darwinlm.__version__
