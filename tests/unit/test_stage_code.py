"""Stages' versions: part of their keys, and looked at whenever their code changes."""

import ast
import io
import json

import pytest
from rich.console import Console
from tests import stage_code
from tests.tiny.process import python

from darwinlm.database.finished import check_fits
from darwinlm.runtime.artifact import StageFolder, stage_version
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError
from darwinlm.stages.text import TEXT


def test_every_change_of_a_stages_code_was_looked_at():
    changed = stage_code.changed_stages()
    assert not changed, (
        f"the code of {', '.join(changed)} changed: say whether it computes the same, with python -m tests.stage_code "
        "same STAGE, or something else, with python -m tests.stage_code changed STAGE"
    )


SAYS_NOTHING = 'import os\n\n\ndef add(a, b):\n    """Add."""\n    return (a\n            + b)  # a sum\n'


def code(monkeypatch, text):
    """The code of a module with this text."""
    monkeypatch.setattr(stage_code, "tree_of", lambda module: ast.parse(text))
    return stage_code.code_of("darwinlm.runtime.artifact")


def test_comments_docstrings_imports_and_layout_are_no_change(monkeypatch):
    plain = code(monkeypatch, "def add(a, b):\n    return a + b\n")
    assert code(monkeypatch, SAYS_NOTHING) == plain
    assert code(monkeypatch, "def add(a, b):\n    return a - b\n") != plain


LOADED = """
import importlib, json, os, sys, torch, transformers
for stage, modules in json.loads(sys.argv[1]).items():
    if not os.fork():
        for module in modules:
            importlib.import_module(module)
        loaded = [name for name in sys.modules if name.partition(".")[0] == "darwinlm"]
        print(json.dumps([stage, loaded]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_an_edit_in_any_module_that_a_stage_loads_is_noticed(monkeypatch):
    """Python itself says what is loaded; an edit is planted in each of these modules."""
    stages, whole = stage_code.roots(), stage_code.digest_of
    start = {stage: sorted(stages[stage]) for stage in ("text", "search", "refit", "recover", "evaluate", "source")}
    lines = python("-W", "ignore", "-c", LOADED, json.dumps(start)).stdout.splitlines()
    assert len(lines) == len(start)
    for stage, loaded in map(json.loads, lines):
        assert len(loaded) > 20
        for planted in set(loaded) - stage_code.WITHOUT_EFFECT:
            monkeypatch.setattr(
                stage_code, "digest_of", lambda each, at=planted: "edited" if each == at else whole(each)
            )
            assert stage in stage_code.changed_stages(), planted


def test_verdicts_on_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_code, "FILE", tmp_path / "versions.json")
    stage_code.FILE.write_text(json.dumps({"versions": {"refit": 4}, "code": {}}))
    assert "refit" in stage_code.changed_stages()
    stage_code.main(["same"])
    assert stage_code.changed_stages() == []
    stage_code.main(["changed", "refit"])
    assert stage_code.read()["versions"]["refit"] == 5
    assert stage_code.read()["versions"]["search"] == 1
    assert "there is no stage nothing" in stage_code.main(["changed", "nothing"])
    assert "changed now: none" in stage_code.main(["changed"]), "which of them must be said"


def test_versions_are_in_keys():
    versions = stage_code.read()["versions"]
    assert stage_version("refit") == versions["refit"]
    assert stage_version("method_uniform") == versions["method"]


def test_a_result_of_another_version_is_told_from_one_of_other_inputs(tmp_path):
    stage = StageFolder(tmp_path / "stage", {"stage": "refit", "version": 1, "input": "a"})
    assert stage.why_redone() == ""
    stage.begin()
    stage.finish()
    assert stage.why_redone() == ""
    newer = StageFolder(stage.folder, {**stage.key, "version": 2})
    assert newer.why_redone() == "done by another version of darwinlm"
    assert not newer.is_complete()
    other = StageFolder(stage.folder, {**newer.key, "input": "b"})
    assert other.why_redone() == "its settings or inputs have changed"


def test_a_result_of_another_version_is_done_again_with_a_word(tmp_path, tiny_llama, make_run, monkeypatch):
    def said():
        console = Console(file=io.StringIO(), width=200)
        make_run(tiny_llama, tmp_path / "out", reporter=Reporter(console))[TEXT]
        return console.file.getvalue()

    said()
    assert "text: already done, reused" in said()
    monkeypatch.setattr("darwinlm.runtime.artifact.stage_version", lambda name: 99)
    assert "text: done by another version of darwinlm, redone" in said()
    monkeypatch.setattr("darwinlm.runtime.artifact.version", lambda name: "4.0")
    assert "text: done by another version of transformers, redone" in said()


def test_a_database_of_another_version_is_refused(tmp_path):
    key = {"stage": "database", "version": stage_version("database")}
    key |= {"inputs": {"dense": "m"}, "settings": {"units.attention": "u"}}
    check_fits(StageFolder(tmp_path, key), tmp_path, model="m", source="owner/model", units="u")
    old = StageFolder(tmp_path, {**key, "version": 0})
    with pytest.raises(ArtifactError, match=r"was built by another version of darwinlm, .*: rebuild it"):
        check_fits(old, tmp_path, model="m", source="owner/model", units="u")
