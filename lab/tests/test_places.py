"""No command of the lab writes over what it reads."""

import shutil
from pathlib import Path

import pytest
from tests.cli.test_places import PRUNE, TEXT, content
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.command import sets

WRITERS = {
    "compare": f"compare run/model {PRUNE} --out run",
    "another text of compare": f"compare model {PRUNE} --domain a=run/stages/text/t.txt --out run",
    "tradeoff": f"tradeoff run/model {TEXT} --held-out text.txt --out run",
    "the other text of tradeoff": f"tradeoff model {TEXT} --held-out run/t.jsonl#body --out run",
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_command_does_not_write_over_its_inputs(
    command, finished_llama, model_copy, tiny_text_file, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_llama, "run")
    for path in ("text.txt", "run/stages/text/t.txt"):
        shutil.copy(tiny_text_file, path)
    Path("run/t.jsonl").write_text('{"body": "words"}\n')
    before = content(tmp_path)
    command(*WRITERS[name].split(), *sets(SETTINGS)).refused("which this command reads: choose another place")
    assert content(tmp_path) == before
