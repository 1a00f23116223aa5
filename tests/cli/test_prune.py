"""`darwinlm prune` when all is well, and the command as a process of its own."""

import json
import re
from dataclasses import replace
from unittest.mock import Mock

import yaml
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import Ended, sets
from tests.tiny.process import python

from darwinlm.errors import RecipeError
from darwinlm.planning import devices
from darwinlm.recipe import describe_fields, load_recipe


def process(*arguments: object, status: int = 0) -> Ended:
    done = python("-m", "darwinlm", *arguments, status=status)
    return Ended(status, done.stdout, done.stderr)


def test_the_process_ends_with_status_2_and_one_message(tmp_path):
    process("prune", tmp_path / "nowhere", "--out", tmp_path / "out", status=2).refused("there is no model at")


def test_the_process_prints_nothing_on_stderr_when_all_is_well(tiny_llama, tiny_text_file, tmp_path):
    ended = process("prune", tiny_llama, "--out", tmp_path / "out", "--text", tiny_text_file, *sets(SETTINGS))
    assert ended.err == ""
    assert str(tmp_path / "out" / "report.html") in ended.out.replace("\n", "")


def test_prune_prints_its_plan_the_table_and_where_things_are_and_then_that_it_reuses(prune, tmp_path, monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))
    ended = prune("--keep", "60%").succeeded()
    assert ended.err == ""
    assert re.search(r"planned: [\d.]+ (s|min) if nothing else runs, [\d.]+ GB of memory", ended.out)
    for word in ("dense", "uniform", "searched", "refit", "continuations of 'the river'"):
        assert word in ended.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert f"{summary['budget']['block_params']:,} of {summary['budget']['dense_block_params']:,}" in ended.out
    for name in ("model", "report.html", "summary.json"):
        assert str(tmp_path / "out" / name) in ended.out
        assert (tmp_path / "out" / name).exists()
    again = prune("--keep", "60%").succeeded()
    assert again.out.count("already done, reused") == 9
    assert "planned:" not in again.out


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
    assert "no plan: the speed of this GPU isn't known" in said


def test_until_search_stops_there(prune, tmp_path):
    ended = prune("--until", "search").succeeded()
    assert "stopped after search" in ended.out
    made = {path.name for path in (tmp_path / "out" / "stages").iterdir()}
    assert made == {"database", "plan", "saliency", "search", "text"}
    assert not (tmp_path / "out" / "model").exists()


def test_a_recipe_file_does_what_options_do(command, tiny_llama, tiny_text_file, tmp_path):

    recipe = load_recipe(None, SETTINGS, {"model": str(tiny_llama), "text.source": str(tiny_text_file)})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    ended = command("prune", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "out", "--until", "plan").succeeded()
    assert "stopped after plan" in ended.out


def test_schema_prints_every_field(command, monkeypatch):
    shown = command("schema", "all").out
    for name, _, _ in describe_fields():
        assert name in shown
    monkeypatch.setenv("COLUMNS", "80")
    assert "budget.keep" in command("schema", "all").out
