"""`darwinlm evaluate --measure`: scores beside the dense model's, what is kept between runs, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny.benchmarks import QUIET, tiny_benchmarks
from tests.tiny.checkpoint import SETTINGS

pytestmark = [*QUIET, pytest.mark.usefixtures("own_cache")]
TYPE = ("--dtype", "float32")

FUNCTION = """
import pathlib
CALLS = pathlib.Path(__file__).with_name("calls")

def score(model, tokenizer):
    with CALLS.open("a") as stream:
        stream.write("x")
    count = sum(parameter.numel() for parameter in model.parameters())
    return [1.0, 1.0, 1.0, 1.0] if count > {limit} else [1.0, 0.0, 1.0, 0.0]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_benchmarks(tmp_path_factory.mktemp("benchmarks"))


@pytest.fixture
def function(tmp_path, tiny_llama) -> Path:
    """A function that the dense model passes, and a smaller one half."""
    from transformers import AutoModelForCausalLM

    count = sum(each.numel() for each in AutoModelForCausalLM.from_pretrained(tiny_llama).parameters())
    (tmp_path / "check.py").write_text(FUNCTION.format(limit=count - 1), encoding="utf-8")
    return tmp_path / "check.py"


def questions(path: Path, count: int = 6) -> Path:
    rows = [{"prompt": f"{n} river stone", "choices": ["light", "winter"], "answer": n % 2} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_is_compared_item_by_item(command, finished_llama, function, tmp_path):
    out = tmp_path / "out.json"
    own = questions(tmp_path / "own.jsonl")
    request = ("evaluate", finished_llama, "--measure", f"{own},{function}:score", "--out", out, *TYPE)
    said = command(*request).succeeded().out
    first, second = result(out)["measures"]
    assert (first["measure"], first["items"]) == ("own.jsonl", 6)
    assert (second["dense_score"], second["score"], second["difference"], second["kept"]) == (1.0, 0.5, -0.5, 0.5)
    assert second["scores"] == [1.0, 0.0, 1.0, 0.0]
    assert second["interval"][0] <= -0.5 <= second["interval"][1]
    assert "check.py:score: 4 items can't show a loss of 2 %" in said
    assert "-50.0 (" in said


def test_what_was_scored_is_not_scored_again(command, finished_llama, tiny_llama, function, tmp_path, own_cache):
    calls = tmp_path / "calls"
    measure = ("--measure", f"{function}:score", *TYPE)
    command("evaluate", finished_llama, *measure).succeeded()
    assert calls.read_text() == "xx"
    command("evaluate", finished_llama, *measure).succeeded()
    command("evaluate", tiny_llama, *measure).succeeded()  # the dense model, by its content
    assert calls.read_text() == "xx"
    assert len(list((own_cache / "darwinlm" / "scores").glob("*.json"))) == 2
    for path in (own_cache / "darwinlm" / "scores").glob("*.json"):
        path.write_text("{", encoding="utf-8")
    command("evaluate", tiny_llama, *measure).succeeded()
    assert calls.read_text() == "xxx", "a damaged file is as good as none"


def test_scores_of_a_task_are_those_of_the_suite(command, tiny_llama, data, tmp_path):
    for name, option in (("suite", "--suite"), ("measure", "--measure")):
        request = (option, "piqa:0,mmlu:0", "--data-dir", data, "--limit", 4, *TYPE)
        command("evaluate", tiny_llama, *request, "--out", tmp_path / f"{name}.json").succeeded()
    suite = {task["task"]: task for task in result(tmp_path / "suite.json")["tasks"]}
    for measured in result(tmp_path / "measure.json")["measures"]:
        task = suite[measured["measure"].partition(":")[0]]
        assert (measured["score"], measured["items"]) == (pytest.approx(task["value"]), task["items"])


def test_a_fault_loses_nothing_and_a_rerun_goes_on(command, tiny_llama, function, tmp_path):
    own = questions(tmp_path / "own.jsonl")
    text = function.read_text(encoding="utf-8")
    function.write_text(text.replace("return [1.0", "yield 1.0\n    1 / 0\n    return [1.0"), encoding="utf-8")
    request = ("evaluate", tiny_llama, "--measure", f"{own},{function}:score", *TYPE)
    command(*request).refused("check.py:score: item 2: ZeroDivisionError: division by zero (line 10)")
    function.write_text(text, encoding="utf-8")
    import darwinlm.evaluation.measures.questions as module

    def fails(*_: object) -> None:
        raise AssertionError("its scores are kept")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "log_likelihoods", fails)
        command(*request).succeeded()


def test_an_interrupted_file_goes_on(command, tiny_llama, tmp_path, monkeypatch):
    import darwinlm.evaluation.measures.questions as module

    monkeypatch.setattr(module, "TOGETHER", 2)
    own, asked, original = questions(tmp_path / "own.jsonl"), [], module.log_likelihoods

    def counted(model: Any, texts: Any) -> list[float]:
        if len(asked) == 2:
            asked.append(0)
            raise KeyboardInterrupt
        asked.append(len(texts))
        return original(model, texts)

    monkeypatch.setattr(module, "log_likelihoods", counted)
    request = ("evaluate", tiny_llama, "--measure", own, *TYPE, "--out", tmp_path / "out.json")
    assert command(*request).code == 130
    command(*request).succeeded()
    assert asked == [4, 4, 0, 4], "two choices of each item"
    assert result(tmp_path / "out.json")["measures"][0]["items"] == 6


def test_different_numbers_of_items(command, finished_llama, function):
    text = function.read_text(encoding="utf-8").replace("[1.0, 0.0, 1.0, 0.0]", "[1.0, 0.0]")
    function.write_text(text, encoding="utf-8")
    command("evaluate", finished_llama, "--measure", f"{function}:score", *TYPE).refused(
        "check.py:score gave 4 scores for the dense model and 2 for another one: every model must get the same items"
    )


def test_items_that_the_run_has_read_are_refused(command, finished_llama, tiny_text_file, tmp_path):
    text = tiny_text_file.read_text(encoding="utf-8").split("\n\n\n")
    rows = [{"question": "river stone of the light", "answer": "winter"}]
    rows += [{"question": document, "answer": "winter", "tokens": 1} for document in text]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    request = ("--measure", own, *TYPE)
    command("evaluate", finished_llama, *request).refused("own.jsonl: ", "items occur in the text of the run (items ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--measure {own} --against nowhere", "nowhere"),
        ("--measure nowhere.jsonl", "--measure nowhere.jsonl: there is no such file"),
        ("--measure nowhere.py:score", "--measure nowhere.py:score: there is no file nowhere.py"),
        ("--measure {own} --measure-time soon", "--measure-time soon: "),
        ("--measure piqa --data-dir nowhere", "there is no such folder"),
    ],
)
def test_wrong_request(options, message, command, tiny_llama, tmp_path):
    own = questions(tmp_path / "own.jsonl")
    command("evaluate", tiny_llama, *options.format(own=own).split()).refused(message)


def test_a_folder_that_cannot_be_written(command, tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    own = questions(tmp_path / "own.jsonl")
    command("evaluate", tiny_llama, "--measure", own, *TYPE).refused("set XDG_CACHE_HOME to a folder that can be")


def test_a_folder_of_scores_that_cannot_be_written_is_told_before_the_work(
    command, tiny_llama, tiny_text_file, tmp_path, monkeypatch
):
    """Scores come last, after hours."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    own, settings = questions(tmp_path / "own.jsonl"), [word for each in SETTINGS for word in ("--set", each)]
    line = ("prune", tiny_llama, "--keep", "60%", "--text", tiny_text_file, "--out", tmp_path / "run", *settings)
    command(*line, "--measure", own).refused("set XDG_CACHE_HOME to a folder that can be")
    assert {path.name for path in (tmp_path / "run" / "stages").iterdir()} == {"text"}
