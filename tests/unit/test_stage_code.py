"""Stages' versions: part of their keys, and looked at whenever their code changes."""

import io
import json

import pytest
from rich.console import Console
from tests import stage_code

from darwinlm.database.finished import check_fits
from darwinlm.runtime import artifact
from darwinlm.runtime.artifact import StageFolder, stage_version
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError


def test_every_change_of_a_stages_code_was_looked_at():
    changed = stage_code.changed_stages()
    assert not changed, (
        f"the code of {', '.join(changed)} changed: say whether it computes the same, with python -m tests.stage_code "
        "same STAGE, or something else, with python -m tests.stage_code changed STAGE"
    )


@pytest.fixture
def project(tmp_path, monkeypatch):
    """One stage in a package of its own; project(code) writes its code."""
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(stage_code, "ROOT", tmp_path)
    monkeypatch.setattr(stage_code, "FILE", tmp_path / "versions.json")

    def write(code):
        (tmp_path / "work" / "sums.py").write_text(code)

    write("def add(a, b):\n    return a + b\n")
    lines = {
        "sum": {"version": 1, "code": ["work"], "digest": ""},
        "other": {"version": 5, "code": ["work"], "digest": ""},
    }
    stage_code.FILE.write_text(json.dumps(lines))
    stage_code.main(["same"])
    assert stage_code.changed_stages() == []
    return write


@pytest.mark.parametrize(
    "code",
    [
        "import os\n\n\ndef add(a, b):\n    return (a\n            + b)  # a sum\n",
        '"""Sums."""\n\ndef add(a, b):\n    """Add."""\n    return a + b\n',
    ],
)
def test_comments_docstrings_imports_and_layout_are_no_change(project, code):
    project(code)
    assert stage_code.changed_stages() == []


def test_a_changed_stage_is_noticed_and_settled(project):
    project("def add(a, b):\n    return a - b\n")
    assert stage_code.changed_stages() == ["sum", "other"]
    stage_code.main(["changed", "sum"])
    assert stage_code.changed_stages() == ["other"]
    assert stage_code.read()["sum"]["version"] == 2
    stage_code.main(["same"])
    assert stage_code.changed_stages() == []
    assert stage_code.read()["other"]["version"] == 5
    assert "there is no stage nothing" in stage_code.main(["same", "nothing"])
    assert "changed now: none" in stage_code.main([])
    assert "changed now" in stage_code.main(["changed"]), "which of them must be said"


def test_a_line_of_a_stage_that_has_no_code_is_noticed(project):
    lines = stage_code.read()
    lines["sum"]["code"] = ["nowhere"]
    stage_code.FILE.write_text(json.dumps(lines))
    with pytest.raises((AssertionError, FileNotFoundError)):
        stage_code.changed_stages()


def test_versions_are_in_keys():
    versions = stage_code.read()
    assert stage_version("refit") == versions["refit"]["version"]
    assert stage_version("measure_dense") == versions["measure"]["version"]


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
        run = make_run(tiny_llama, tmp_path / "out", reporter=Reporter(console))
        with run.stage("stitch", {"input": 1}, "stitch") as (_, work):
            pass
        return work, console.file.getvalue()

    assert said()[0]
    assert "reused" in said()[1]
    monkeypatch.setattr("darwinlm.run.stage_version", lambda name: 99)
    work, words = said()
    assert work
    assert "stitch: done by another version of darwinlm, redone" in words


def test_a_database_of_another_version_is_refused(tmp_path):
    key = {"stage": "database", "model": "m", "units": "u", "version": artifact.stage_version("database")}
    check_fits(StageFolder(tmp_path, key), tmp_path, model="m", source="owner/model", units="u")
    old = StageFolder(tmp_path, {**key, "version": 0})
    with pytest.raises(ArtifactError, match=r"was built by another version of darwinlm, .*: rebuild it"):
        check_fits(old, tmp_path, model="m", source="owner/model", units="u")
