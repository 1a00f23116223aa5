"""What lies beside the weights is part of the steps that read it: a change there redoes these, and no others."""

import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.tiny.stages import run_stages

from darwinlm.recipe import Recipe
from darwinlm.runtime.artifact import READS, read_manifest
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.reads import note
from darwinlm.runtime.run import Run
from darwinlm.runtime.step import Step, Task

TEMPLATE = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
SETTINGS = ("text.evaluation_tokens=256", "refit.tokens=0")


@pytest.fixture(scope="module")
def finished(tiny_llama: Path, make_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a whole run with these settings. It is shared: don't write into it."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    run_stages(make_run(tiny_llama, folder, *SETTINGS), "report")
    return folder


@pytest.fixture
def rerun(finished: Path, model_copy: Path, make_run, tmp_path: Path):
    """Run to the report once more, and give the steps that worked, with what was said."""
    shutil.copytree(finished, tmp_path / "out")

    def again() -> tuple[set[str], str]:
        console = Console(file=io.StringIO(), width=200)
        run = make_run(model_copy, tmp_path / "out", *SETTINGS, reporter=Reporter(console))
        summary = run_stages(run, "report").report
        return {stage.name for stage in summary.stages if not stage.reused}, console.file.getvalue()

    return again


def test_nothing_is_redone_without_a_change(rerun) -> None:
    assert rerun()[0] == set()


@pytest.mark.parametrize("name", ["LICENSE", "generation_config.json"])
def test_carried_files_are_saved_again(rerun, model_copy: Path, tmp_path: Path, name: str) -> None:
    text = json.dumps({"eos_token_id": 5}) if name.endswith(".json") else "Do what you like."
    (model_copy / name).write_text(text)
    redone, said = rerun()
    assert "export" in redone
    assert not redone & {"text", "database", "search", "stitch"}
    assert "export: the carried files of" in said
    saved = (tmp_path / "out" / "model" / name).read_text()
    assert json.loads(saved)["eos_token_id"] == 5 if name.endswith(".json") else saved == text


def test_end_tokens_change_what_models_write(rerun, model_copy: Path) -> None:
    (model_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 5}))
    redone, _ = rerun()
    assert "evaluate" in redone
    assert not redone & {"text", "database", "search", "stitch"}


def test_a_chat_template_is_part_of_text_and_answers(rerun, model_copy: Path, tmp_path: Path) -> None:
    (model_copy / "chat_template.jinja").write_text(TEMPLATE)
    redone, said = rerun()
    assert {"text", "export", "evaluate"} <= redone
    assert not redone & {"database", "search", "stitch"}, "the tokens of the text are the same"
    assert "text: the tokenizer of" in said
    assert (tmp_path / "out" / "model" / "chat_template.jinja").read_text() == TEMPLATE
    assert rerun()[0] == set()


@pytest.mark.parametrize("setting", [{"model_max_length": 333}, {"padding_side": "left"}])
def test_settings_of_the_tokenizer_are_saved_again(rerun, model_copy: Path, tmp_path: Path, setting: dict) -> None:
    path = model_copy / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **setting}))
    redone, said = rerun()
    assert "export" in redone
    assert not redone & {"database", "search", "stitch"}, "the tokens of the text are the same"
    assert "export: the tokenizer of" in said
    assert setting.items() <= json.loads((tmp_path / "out" / "model" / "tokenizer_config.json").read_text()).items()
    assert rerun()[0] == set()


@dataclass
class Given:
    """An input with a part that a step may read."""

    folder: Path
    tokenizer: str = "its first tokenizer"
    source: str = "the model"
    digest: str = "its weights"

    def part(self, name: str) -> str:
        return self.tokenizer


@dataclass(frozen=True, eq=False)
class Interrupted(Step[str]):
    """A step that reads a part into a file, is interrupted, and goes on from the file."""

    name = "interrupted"

    given: Given
    ends: bool

    def work(self, task: Task) -> None:
        if not (task.folder / "text").exists():
            note(self.given, "tokenizer")
            (task.folder / "text").write_text(self.given.tokenizer, encoding="utf-8")
        if self.ends:
            raise KeyboardInterrupt

    def read(self, task: Task) -> str:
        return (task.folder / "text").read_text(encoding="utf-8")


@pytest.fixture
def interrupted(tmp_path: Path):
    """Runs a step until it is interrupted, or to its end: its result, and what it read by its manifest."""

    def run(given: Given, *, ends: bool) -> tuple[str, object] | None:
        out = tmp_path / "out"
        try:
            result = Run(Recipe(model="unused"), out, Reporter(quiet=True))(Interrupted(given, ends))
        except KeyboardInterrupt:
            return None
        assert not (out / "stages" / "interrupted" / READS).exists()
        return result, read_manifest(out / "stages" / "interrupted").reads

    return run


def test_a_resumed_step_has_read_what_the_interrupted_one_did(interrupted, tmp_path: Path) -> None:
    given = Given(tmp_path / "model")
    assert interrupted(given, ends=True) is None
    assert interrupted(given, ends=True) is None, "once more, without a reading"
    assert interrupted(given, ends=False) == (given.tokenizer, {given.digest: {"tokenizer": given.tokenizer}})


def test_an_interrupted_step_is_redone_if_what_it_read_has_changed(interrupted, tmp_path: Path) -> None:
    given = Given(tmp_path / "model")
    assert interrupted(given, ends=True) is None
    other = replace(given, tokenizer="another one")
    assert interrupted(other, ends=False) == ("another one", {given.digest: {"tokenizer": "another one"}})
