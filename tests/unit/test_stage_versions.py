"""Stages' versions: part of their keys."""

import io

from rich.console import Console
from tests.tiny.stages import result

from darwinlm.runtime.console import Reporter
from darwinlm.stages.text import TEXT


def test_a_result_of_another_version_is_done_again_with_a_word(tmp_path, tiny_llama, make_run, monkeypatch):
    def said():
        console = Console(file=io.StringIO(), width=200)
        result(make_run(tiny_llama, tmp_path / "out", reporter=Reporter(console)), "text")
        return console.file.getvalue()

    said()
    assert "text: already done, reused" in said()
    monkeypatch.setitem(vars(TEXT), "version", TEXT.version + 1)
    assert "text: done by another version of darwinlm, redone" in said()
    monkeypatch.setattr("darwinlm.runtime.artifact.version", lambda name: "4.0")
    assert "text: done by another version of transformers, redone" in said()
